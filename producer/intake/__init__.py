"""The way in: items to the ledger first, then chunks to the queue, then the seal."""
