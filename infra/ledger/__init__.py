"""The ledger: tables, migrations and the only SQL. Knows no broker."""
