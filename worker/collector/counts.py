"""What the collector counts of the chunks it settled. Knows neither how they settled nor where counts are kept."""

from __future__ import annotations

from collections.abc import Iterable

from infra import telemetry
from infra.ledger.settlement import Settled
from infra.telemetry import Tally
from schemas.items import Label
from schemas.messages import VerdictChunk
from schemas.verdicts import Outcome


def count_settled(settled: Iterable[tuple[VerdictChunk, Settled]]) -> Tally:
    """Items by outcome and label, duplicates, cache hits; tokens and stage times of chunks that changed something."""
    tally = Tally()
    for chunk, now in settled:
        lane = (now.guard, now.lane)
        tally.add(telemetry.ITEMS_SETTLED, *lane, Outcome.SCORED.value, Label.SAFE.value, by=now.scored - now.unsafe)
        tally.add(telemetry.ITEMS_SETTLED, *lane, Outcome.SCORED.value, Label.UNSAFE.value, by=now.unsafe)
        for outcome, items in ((Outcome.UNPARSEABLE, now.unparseable), (Outcome.DEAD, now.dead)):
            tally.add(telemetry.ITEMS_SETTLED, *lane, outcome.value, telemetry.NO_LABEL, by=items)
        tally.add(telemetry.ITEMS_CACHED, *lane, by=now.cached)
        tally.add(telemetry.DUPLICATES, *lane, by=len(chunk.verdicts) - now.inserted)
        if now.inserted:
            _count_spent(tally, lane, chunk)
    return tally


def _count_spent(tally: Tally, lane: tuple[str, str], chunk: VerdictChunk) -> None:
    stages = (chunk.timings.queue_s, chunk.timings.render_s, chunk.timings.device_s)
    for stage, seconds in zip(telemetry.STAGES, stages, strict=True):
        tally.observe(telemetry.STAGE, seconds, *lane, stage)
    if chunk.spent is not None:
        for kind, tokens in zip(
            telemetry.TOKEN_KINDS, (chunk.spent.prompt_tokens, chunk.spent.new_tokens), strict=True
        ):
            tally.add(telemetry.TOKENS_SPENT, *lane, kind, by=tokens)
