"""Facts that processes exchange over Redis. All of it may be lost; the ledger alone is the truth."""
