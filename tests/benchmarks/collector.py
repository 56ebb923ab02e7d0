"""The collector alone: verdict chunks that wait on the queue, a prepared ledger, and nothing else running."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from infra.ledger import decisions, intake, webhooks
from infra.process import wait_until
from infra.servers.services import Services
from schemas.guards import Mode
from schemas.items import Item, Label
from schemas.messages import JudgeChunk, Lane, VerdictChunk
from schemas.policy import Policy, Thresholds
from schemas.runs import RunSpec
from schemas.verdicts import Fingerprint, Outcome, Spent, Timings, Verdict
from tests.benchmarks.kit.figures import Figure, median_figure
from tests.benchmarks.kit.processes import Meter
from tests.benchmarks.kit.rig import GUARD, rig, run_row, text_of
from tests.support.processes import stop

_CHUNKS: Final = 640
_MANY_CHUNKS: Final = 3_200
"""Where nothing else is done to a verdict: so many that the start of the finalizer's process does not show."""
_CHUNK_ITEMS: Final = 64
_RUNS: Final = 3
_VERDICTS_PER_S: Final = 10_000
_TIMEOUT_S: Final = 120
_BARS: Final = {"settled": _VERDICTS_PER_S}
_POLICY: Final = Policy(policy="benchmark", version=1, thresholds=Thresholds(review=0.5, block=0.9))
_FINGERPRINT: Final = Fingerprint(
    guard=GUARD, model="fake", revision="1", prompt="p", mode=Mode.SCORE, dtype="none", engine="fake"
)


def run(*, quick: bool) -> Iterator[Figure]:
    """Chunks of 64 verdicts, as fast as the collector takes them; then such that are decided and told as well."""
    for decided, what, chunks in ((False, "settled", _MANY_CHUNKS), (True, "settled, decided, told", _CHUNKS)):
        rates, costs = [], []
        with rig() as found:
            for number in range(1 if quick else _RUNS):
                run_id = _prepare(found.services, number, chunks, decided=decided)
                with Meter().running() as meter:
                    _collect(found.services, run_id)
                first, last, size = _span(found.services.engine, run_id)
                rates.append((size - _CHUNK_ITEMS) / (last - first))
                costs.append(1_000 * sum(meter.cpu_between(first, last).values()) / size)
        yield median_figure("collector", f"verdicts {what}", rates, "verdicts/s", at_least=_BARS.get(what))
        yield median_figure("collector", "CPU: collector, Valkey, Postgres", costs, "core-ms/verdict")


def _submit(engine: sa.Engine, run_id: str) -> None:
    """As if a tenant with a policy and a webhook endpoint had sent every item of the run."""
    decisions.put_policy(engine, _POLICY)
    decisions.set_tenant_policy(engine, "benchmark", _POLICY.policy)
    if not webhooks.endpoints(engine):
        webhooks.add_endpoint(engine, "benchmark", "https://hook.example/")
    statement = sa.text(
        "INSERT INTO submissions (run_id, seq, tenant, custom_id) "
        "SELECT run_id, seq, 'benchmark', item_id FROM items WHERE run_id = :run_id"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"run_id": run_id})


def _prepare(found: Services, number: int, chunk_count: int, *, decided: bool) -> str:
    """Accept the items and publish the verdicts on them."""
    spec = RunSpec(guard=GUARD, lane=Lane.BULK, source="benchmark")
    run_id = intake.create_run(found.engine, spec)
    items = [Item(id=f"{number}-{at}", response=text_of(at, 200)) for at in range(chunk_count * _CHUNK_ITEMS)]
    groups = [items[at : at + _CHUNK_ITEMS] for at in range(0, len(items), _CHUNK_ITEMS)]
    chunks: Sequence[JudgeChunk] = intake.accept(found.engine, run_id, spec, groups)
    intake.seal(found.engine, run_id)
    if decided:
        _submit(found.engine, run_id)
    for chunk in chunks:
        found.publisher.settle(_verdicts(chunk))
    return run_id


def _verdicts(chunk: JudgeChunk) -> VerdictChunk:
    verdicts = tuple(
        Verdict(
            seq=item.seq, outcome=Outcome.SCORED, label=Label.SAFE, p_unsafe=0.1, label_mass=0.99, prompt_tokens=200
        )
        for item in chunk.items
    )
    return VerdictChunk(
        run_id=chunk.run_id,
        chunk_no=chunk.chunk_no,
        worker="benchmark",
        fingerprint=_FINGERPRINT,
        timings=Timings(queue_s=0.1, render_s=0.01, device_s=0.1),
        verdicts=verdicts,
        spent=Spent(device="a device", device_s=0.1, prompt_tokens=200 * len(verdicts)),
    )


def _collect(found: Services, run_id: str) -> None:
    log = found.settings.state_dir / "collector.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "libra_fleet.cli", "collector"]
        process = subprocess.Popen(command, env=found.environment(), stdout=output, stderr=output)
        try:
            if not wait_until(lambda: run_row(found.engine, run_id)["completed_at"], timeout_s=_TIMEOUT_S):
                raise TimeoutError(f"the collector did not complete the run:\n{log.read_text()[-2_000:]}")
        finally:
            stop(process, grace_s=10)


def _span(engine: sa.Engine, run_id: str) -> tuple[float, float, int]:
    """First and last settlement (epoch seconds) and the number of verdicts."""
    statement = sa.text(
        "SELECT extract(epoch FROM min(settled_at))::float8, extract(epoch FROM max(settled_at))::float8, count(*) "
        "FROM verdicts WHERE run_id = :run_id"
    )
    with engine.connect() as connection:
        first, last, size = connection.execute(statement, {"run_id": run_id}).one()
    return first, last, size
