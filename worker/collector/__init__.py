"""Settles verdicts into the ledger, completes runs, finds what was lost."""
