"""The chaos drill: a fleet at work, faults on a seeded schedule, and the proof that nothing was lost or doubled.

It knows the rest of the fleet by command line and ledger only, as an operator's service manager would.
"""
