"""What a drill checks of the ledger besides its audit: verdicts of other texts, false deaths, stalls, lost calls.

The fake guard's P(unsafe) is drawn from the text, so that a verdict on another text shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

import sqlalchemy as sa

from infra.servers.services import Services
from libra_fleet.drill.traffic import OPEN, TENANT
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


# What follows one after the other without work of its own in between: settlements of a run that is fed all the time,
# a submission and its verdict, a run's last verdict and its report.
_STEPS: Final = sa.text(
    """
    SELECT 'run ' || r.name AS what, extract(epoch FROM lag(at) OVER (PARTITION BY r.id ORDER BY at))::float8 AS since,
           extract(epoch FROM at)::float8 AS until
    FROM (SELECT DISTINCT run_id, settled_at AS at FROM verdicts) AS times JOIN runs r ON r.id = times.run_id
    WHERE r.name LIKE 'drill-%' AND r.name <> :filled_at_times
    UNION ALL
    SELECT 'item ' || s.custom_id, extract(epoch FROM s.created_at)::float8, extract(epoch FROM v.settled_at)::float8
    FROM submissions s JOIN verdicts v USING (run_id, seq)
    UNION ALL
    SELECT 'report of ' || name, extract(epoch FROM settled_at)::float8, extract(epoch FROM completed_at)::float8
    FROM runs WHERE completed_at IS NOT NULL
    """
)


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


def stalls(services: Services, explained: Sequence[tuple[float, float]], *, longer_than_s: float) -> list[str]:
    """What took too long to settle or to be reported on; time that an outage explains does not count."""
    with services.engine.connect() as connection:
        steps = connection.execute(_STEPS, {"filled_at_times": OPEN[2]}).all()
    found = []
    for what, since, until in steps:
        if since is None or until - since <= longer_than_s:
            continue
        seconds = until - since - sum(max(0.0, min(until, over) - max(since, at)) for at, over in explained)
        if seconds > longer_than_s:
            found.append(f"{what} for {seconds:.1f} s")
    return found


def breach(what: str, items: Sequence[object]) -> list[str]:
    """One line about what was found, if anything was."""
    if not items:
        return []
    shown = "; ".join(map(str, items[:_SHOWN]))
    return [f"{len(items):,} {what}: {shown}{'; …' if len(items) > _SHOWN else ''}"]
