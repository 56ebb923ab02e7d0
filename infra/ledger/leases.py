"""Leases that are a time in a row: when one has ended. Knows no table."""


def lease_ended(column: str = "lease_until") -> str:
    """SQL: the lease has ended by the ledger's clock, or that clock has been set back since it was taken.

    Then it lies further ahead than a lease is long (`:lease_s`), and its holder, if it lives, takes it anew.
    """
    return f"({column} < clock_timestamp() OR {column} > clock_timestamp() + make_interval(secs => 2 * :lease_s))"
