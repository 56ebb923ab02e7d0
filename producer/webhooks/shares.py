"""How many messages a sender sends at once to each destination: more after quick answers, one where none comes.

A receiver that never answers holds a connection until the time-out. Without shares it would hold all of them, and every
other tenant's messages would wait for it. Knows nothing of HTTP or of the ledger.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

FIRST_SHARE: Final = 4
"""Connections to a destination that nothing is known of."""
QUICK_S: Final = 1.0
"""An answer within this lets a share grow; a later one halves it."""
_KNOWN: Final = 10_000


class Shares:
    """The shares of one sender with so many connections. For one thread."""

    def __init__(self, connections: int) -> None:
        self._most = max(1, connections // 2)
        self._most_of_tenant = max(1, connections * 3 // 4)
        self.first = min(FIRST_SHARE, self._most)
        """The share of a destination that is new."""
        self._shares: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        self._of_tenant: Counter[str] = Counter()

    def begin(self, destination: str, tenant: str) -> None:
        """A message is under way."""
        self._running[destination] += 1
        self._of_tenant[tenant] += 1

    def end(self, destination: str, tenant: str, *, answered: bool, took_s: float) -> None:
        """It has ended, with an answer of any kind or without one."""
        self._running -= Counter({destination: 1})
        self._of_tenant -= Counter({tenant: 1})
        share = self._shares.pop(destination, self.first)
        if len(self._shares) >= _KNOWN:
            del self._shares[next(iter(self._shares))]  # the one that was heard of longest ago
        if not answered:
            share = 1
        elif took_s > QUICK_S:
            share = max(1, share // 2)
        else:
            share = min(self._most, share + 1)
        self._shares[destination] = share

    def rooms(self) -> dict[str, int]:
        """How many more messages may go to each destination that is known; to others, `first`."""
        known = {**self._shares, **{name: self._shares.get(name, self.first) for name in self._running}}
        return {name: max(0, share - self._running[name]) for name, share in known.items()}

    def full_tenants(self) -> list[str]:
        """The tenants that have all connections that one tenant may have."""
        return [tenant for tenant, running in self._of_tenant.items() if running >= self._most_of_tenant]
