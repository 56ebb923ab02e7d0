"""The code that every process uses: settings, logging, errors, broker, ledger, metrics, embedded servers."""
