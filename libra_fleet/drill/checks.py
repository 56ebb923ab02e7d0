"""What a drill checks of the ledger besides its audit: verdicts of other texts, false deaths, stalls, lost calls.

The fake guard's P(unsafe) is drawn from the text, so that a verdict on another text shows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.servers.services import Services
from libra_fleet.drill.traffic import TENANT
from libra_fleet.drill.work_faults import POISON
from schemas.guards import Mode
from schemas.messages import ChunkItem
from worker.device.engines.fake import FakeEngine
from worker.guards.fake import FakeGuard

FAKE_ERROR: Final = 0.05
"""The fake engine's share of wrong verdicts: with one, P(unsafe) is as good as a digest of the text."""
_SAME: Final = 1e-9
_POISONOUS: Final = re.compile(rf"\[\[fake:({'|'.join(POISON)})]]")
_SHOWN: Final = 5

_SCORED: Final = sa.text(
    "SELECT i.item_id, i.question, i.response, v.label, v.p_unsafe FROM verdicts v JOIN items i USING (run_id, seq) "
    "WHERE v.outcome = 'scored'"
)
_DEAD: Final = sa.text(
    "SELECT i.item_id, i.question || i.response AS text, v.reason FROM verdicts v JOIN items i USING (run_id, seq) "
    "WHERE v.outcome = 'dead'"
)
_CALLS: Final = sa.text(
    "SELECT s.custom_id, count(v.outcome) AS verdicts FROM submissions s LEFT JOIN verdicts v USING (run_id, seq) "
    "WHERE s.tenant = :tenant GROUP BY s.custom_id"
)


class Stall(NamedTuple):
    """A time in which nothing settled, beyond what an outage explains. Epoch seconds of the ledger's clock."""

    at: float
    seconds: float


def wrong_verdicts(services: Services) -> list[str]:
    """Items whose verdict is not that of their own text."""
    guard, engine = FakeGuard(), FakeEngine(error=FAKE_ERROR)
    wrong = []
    with services.engine.connect() as connection:
        for row in connection.execute(_SCORED):
            item = ChunkItem(seq=0, question=row.question, response=row.response)
            ((prompt,),) = guard.render([item], Mode.SCORE)
            own = guard.read_scores(0, engine.score([prompt], guard.label_ids))
            if own.label != row.label or not math.isclose(own.p_unsafe or 0.0, row.p_unsafe, abs_tol=_SAME):
                wrong.append(str(row.item_id))
    return wrong


def false_deaths(services: Services) -> list[str]:
    """Dead items that were not poisonous, or whose reason is not their own, each with that reason."""
    with services.engine.connect() as connection:
        dead = connection.execute(_DEAD).all()
    return [
        f"{row.item_id}: {row.reason}"
        for row in dead
        if not _POISONOUS.search(row.text) or row.reason.startswith("lost ")
    ]


def unanswered_calls(services: Services, acknowledged: Iterable[str]) -> list[str]:
    """Calls that the gateway acknowledged and that do not have exactly one verdict."""
    with services.engine.connect() as connection:
        found = {row.custom_id: row.verdicts for row in connection.execute(_CALLS, {"tenant": f"{TENANT}-http"})}
    return [f"{name} ({found.get(name, 0)} verdicts)" for name in acknowledged if found.get(name) != 1]


def stalls(services: Services, outages: Sequence[tuple[float, float]], *, longer_than_s: float) -> list[Stall]:
    """Times between two settlements that are too long; time in an outage does not count."""
    statement = sa.text("SELECT DISTINCT extract(epoch FROM settled_at)::float8 AS at FROM verdicts ORDER BY at")
    with services.engine.connect() as connection:
        times = connection.scalars(statement).all()
    found = []
    for before, after in itertools.pairwise(times):
        explained = sum(max(0.0, min(after, until) - max(before, since)) for since, until in outages)
        if (seconds := after - before - explained) > longer_than_s:
            found.append(Stall(before, seconds))
    return found


def breach(what: str, items: Sequence[object]) -> list[str]:
    """One line about what was found, if anything was."""
    if not items:
        return []
    shown = "; ".join(map(str, items[:_SHOWN]))
    return [f"{len(items):,} {what}: {shown}{'; …' if len(items) > _SHOWN else ''}"]
