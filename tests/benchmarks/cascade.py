"""A cascade against each of its stages alone, in turns over the same items, on a simulated pair of guards.

The small guard takes 1 ms an item and errs in a tenth of them, the large one takes 4 ms and errs in 3 %; both know how
sure they are, and their errors are drawn independently of each other. Each has one device of its own, so the cascade
has two: beside the plain rates stand items per device-second, which a second device does not raise. Thresholds are
fitted to 2 % on a run of the small guard over other items, and not touched after that.

Against the large guard alone, accuracy must be equal (the cascade's not below the large one's bootstrap interval) and
the rate higher. The small guard alone is no rival at equal accuracy: its whole interval must lie below the cascade's,
while the cascade's rate stays near the small guard's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final, NamedTuple

from infra.ledger import intake
from infra.ledger.items import judged_rows
from infra.ledger.runs import stages_of
from infra.ledger.stats import device_seconds
from infra.metrics.thresholds import Scored, fit_thresholds
from libra_fleet.cli.context import follow_stages, wait_for_end
from libra_fleet.cli.show import report_of
from libra_fleet.machine.fleet import LocalFleet
from producer.intake.submit import seal, submit
from schemas.items import Item, Label
from schemas.messages import Lane
from schemas.runs import Interval, NextStage, RunSpec
from tests.benchmarks.kit.figures import Figure, median_figure
from tests.benchmarks.kit.rig import Rig, rig, run_row

_SMALL: Final = ("--fake-batch-ms", "10", "--fake-item-ms", "1", "--fake-error", "0.1")
_LARGE: Final = ("--fake-batch-ms", "10", "--fake-item-ms", "4", "--fake-error", "0.03")
_TARGET_ERROR: Final = 0.02
_ITEMS: Final = 12_000
_QUICK_ITEMS: Final = 4_000
_FITTED_ON: Final = 4_000
_WARM_UP: Final = 1_000
_ROUNDS: Final = 2
_RATE_OF_LARGE: Final = 2.0
_RATE_OF_SMALL: Final = 0.75
_PER_DEVICE_OF_LARGE: Final = 1.3


class Done(NamedTuple):
    """A run that has ended: its rate, accuracy with its interval, and device time."""

    items_per_s: float
    accuracy: float
    interval: Interval
    device_s: float
    settled_shares: tuple[float, ...]


def run(*, quick: bool) -> Iterator[Figure]:
    """Fit thresholds, then small, large and cascade over the same items, in turns."""
    items = _items(_QUICK_ITEMS if quick else _ITEMS, "item")
    with rig() as found, ExitStack() as fleets:
        for name, options in (("small", _SMALL), ("large", _LARGE)):
            worker_options = ["--devices", "cpu", "--checkpoint", "fake", *options]
            fleets.enter_context(LocalFleet(found.services, name, worker_options=worker_options))
            _judge(found, RunSpec(guard=name, source="warm-up"), _items(_WARM_UP, "warm"))
        stage = _fitted(found)
        specs = {
            "small": RunSpec(guard="small", lane=Lane.BULK, source="benchmark"),
            "large": RunSpec(guard="large", lane=Lane.BULK, source="benchmark"),
            "cascade": RunSpec(guard="small", lane=Lane.BULK, source="benchmark", stages=(stage,)),
        }
        rounds = []
        for _ in range(1 if quick else _ROUNDS):
            found.analyze()
            rounds.append({name: _judge(found, spec, items) for name, spec in specs.items()})
    yield from _figures(rounds, stage)


def _figures(rounds: list[dict[str, Done]], stage: NextStage) -> Iterator[Figure]:
    def rates(name: str) -> list[float]:
        return [done[name].items_per_s for done in rounds]

    def beside(name: str) -> list[float]:
        return [mine / alone for mine, alone in zip(rates("cascade"), rates(name), strict=True)]

    per_device = [done["large"].device_s / done["cascade"].device_s for done in rounds]
    last = rounds[-1]
    small, large, cascade = last["small"], last["large"], last["cascade"]
    note = f"settled by stage: {', '.join(f'{share:.1%}' for share in cascade.settled_shares)}"
    sure = f"sure below {stage.sure_below:.4f}, above {stage.sure_above:.4f}"
    yield median_figure("cascade", "rate, cascade / large alone", beside("large"), "", at_least=_RATE_OF_LARGE)
    yield median_figure("cascade", "rate, cascade / small alone", beside("small"), "", at_least=_RATE_OF_SMALL)
    name = "items per device-second, cascade / large alone"
    yield median_figure("cascade", name, per_device, "", at_least=_PER_DEVICE_OF_LARGE)
    margin = cascade.accuracy - large.interval.low
    yield Figure("cascade", "accuracy less the lower end of the large guard's", margin, "", at_least=0, note=sure)
    margin = cascade.interval.low - small.interval.high
    yield Figure("cascade", "lower end of its accuracy less the small guard's upper end", margin, "", at_least=0)
    for which in ("cascade", "large", "small"):
        yield median_figure(
            "cascade", f"{which}: rate", rates(which), "items/s", note=note if which == "cascade" else ""
        )
        interval = f"95 %: {last[which].interval.low:.4f} to {last[which].interval.high:.4f}"
        yield Figure("cascade", f"{which}: accuracy", last[which].accuracy, "", note=interval)


def _fitted(found: Rig) -> NextStage:
    """Thresholds for the small guard, from a run over items that nothing else is measured on."""
    spec = RunSpec(guard="small", lane=Lane.BULK, source="fitting")
    run_id = _run(found, spec, _items(_FITTED_ON, "fit"))
    rows = judged_rows(found.services.engine, run_id)
    scored = [Scored(row.p_unsafe, row.label == row.truth) for row in rows if row.p_unsafe is not None]
    fitted = fit_thresholds(scored, _TARGET_ERROR)
    return NextStage(guard="large", sure_below=fitted.sure_below, sure_above=fitted.sure_above)


def _judge(found: Rig, spec: RunSpec, items: list[Item]) -> Done:
    started_at = time.time()
    run_id = _run(found, spec, items)
    engine = found.services.engine
    stages = stages_of(engine, run_id)
    settled_at = max(run_row(engine, stage.id)["settled_at"].timestamp() for stage in stages)
    report = report_of(found.services, run_id)
    (overall,) = [group for group in report.groups if group.kind == "all"] if report else []
    accuracy = overall.metric("accuracy")
    if report is None or accuracy is None or accuracy.value is None or accuracy.interval is None:
        raise RuntimeError(f"run {run_id} has no accuracy")
    shares = report.cascade.stages if report.cascade else ()
    return Done(
        items_per_s=len(items) / (settled_at - started_at),
        accuracy=accuracy.value,
        interval=accuracy.interval,
        device_s=sum(device_seconds(engine, stage.id) for stage in stages),
        settled_shares=tuple(share.settled / len(items) for share in shares),
    )


def _run(found: Rig, spec: RunSpec, items: list[Item]) -> str:
    engine = found.services.engine
    run_id = intake.create_run(engine, spec)
    submit(found.services, run_id, spec, items)
    seal(found.services, run_id)
    wait_for_end(engine, run_id)
    follow_stages(found.services, run_id, lambda: None)
    if (stages := stages_of(engine, run_id))[-1].counts.dead:
        raise RuntimeError(f"items died in run {stages[-1].id}")
    return run_id


def _items(count: int, prefix: str) -> list[Item]:
    """Items whose truth the guards know, but for their errors; half of them unsafe."""
    ends = itertools.cycle([("safe", Label.SAFE), ("unsafe", Label.UNSAFE)])
    return [
        Item(
            id=f"{prefix}-{at}", response=f"[[fake:{end}]] {prefix} {at} {'文字' * 20}", truth=truth, source="Real Data"
        )
        for at, (end, truth) in zip(range(count), ends, strict=False)
    ]
