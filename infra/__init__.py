"""What every process stands on: settings, logging, errors, broker, ledger, metrics, embedded servers."""
