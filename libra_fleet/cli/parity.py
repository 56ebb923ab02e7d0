"""`libra bench parity`: do a guard's two modes agree? The same items in score and in generate, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import click
from rich.table import Table
from rich.text import Text

from infra.errors import RunError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger import intake, reading
from infra.ledger.comparing import Pair, pairs_of
from infra.servers.services import Services
from libra_fleet.cli.context import Checked, checked, connected, detaching, fleet_for
from libra_fleet.cli.options import GuardChoice, LocalFleetOptions, guard_option, json_option, takes_fleet
from libra_fleet.cli.show import err, out, print_json, say
from libra_fleet.cli.watch import progress_line, wait_for_end
from schemas.guards import Mode
from schemas.runs import RunReport, RunSpec

_MODES: Final = (Mode.SCORE, Mode.GENERATE)
_COLUMNS: Final = ("accuracy", "f1_safe", "f1_unsafe", "balanced_accuracy", "coverage")
_ENDS: Final = ("safe", "unsafe", "unparseable", "dead")
_EXAMPLES: Final = 20
_MAX_TEXT: Final = 200


class Example(NamedTuple):
    """An item on which the modes differ."""

    pair: Pair
    score: str
    generate: str


@dataclass
class Parity:
    """How two runs over the same items compare. `cells` counts items by (score, generate)."""

    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Parity:
        """Count pairs; the first disagreements are kept as examples."""
        parity = cls()
        for pair in pairs:
            ends = [label or outcome for label, outcome in zip(pair.labels, pair.outcomes, strict=True)]
            score, generate = (end.value for end in ends)
            parity.cells[score, generate] += 1
            if score != generate:
                parity.by_source[pair.source] += 1
                if len(parity.examples) < _EXAMPLES:
                    parity.examples.append(Example(pair, score, generate))
        return parity

    @property
    def items(self) -> int:
        """Items that both runs have."""
        return self.cells.total()

    @property
    def agreement(self) -> float:
        """Share of the items that ended alike: both safe, both unsafe, both unparseable. Two deaths say nothing."""
        alike = sum(count for (score, generate), count in self.cells.items() if score == generate != "dead")
        return alike / self.items if self.items else 0.0


@click.command()
@click.argument("source")
@guard_option
@click.option("--limit", type=click.IntRange(min=1), help="At most so many rows.")
@click.option("--seed", type=int, help="With --limit: a random sample by this seed, not the first rows.")
@click.option("--require", type=click.FloatRange(0, 1), help="Exit 7 where the agreement is lower, such as 0.99.")
@click.option("--show-text", is_flag=True, help="Show the texts of the examples too.")
@takes_fleet
@json_option
def parity(
    *,
    source: str,
    guard: GuardChoice,
    limit: int | None,
    seed: int | None,
    require: float | None,
    show_text: bool,
    fleet: LocalFleetOptions,
    as_json: bool,
) -> None:
    """Judge a data set in score and in generate mode, and show where they differ."""
    card = GUARDS.get(guard.name)
    if card and not set(_MODES) <= set(card.modes):
        raise UsageError(f"{guard.name} has not both modes, score and generate")
    specs = [
        RunSpec(guard=guard.name, checkpoint=guard.checkpoint, mode=mode, source=source, limit=limit, seed=seed)
        for mode in _MODES
    ]
    with connected() as found, checked(source, specs[0]) as data:
        reports = _judged_both(found, specs, data, fleet)
        compared = Parity.of(pairs_of(found.engine, reports[0].run_id, reports[1].run_id))
    if as_json:
        print_json(facts_of(compared, reports, show_text=show_text))
    else:
        for part in _tables(compared, reports, show_text=show_text):
            out.print(part)
    if require is not None and compared.agreement < require:
        raise RunError(f"score and generate agree on {compared.agreement:.4f} of the items, below {require:g}")


def _judged_both(found: Services, specs: list[RunSpec], data: Checked, choice: LocalFleetOptions) -> list[RunReport]:
    """Both runs, one after the other on one fleet, to their reports."""
    reports = []
    found.coordination  # noqa: B018 - servers that cannot be reached are said before anything starts
    found.engine  # noqa: B018
    with fleet_for(found, specs[0], choice) as fleet_lives:
        for spec in specs:
            run_id = intake.new_run_id()
            with detaching(found, run_id, fleet_lives) as check:
                intake.create_run(found.engine, spec, run_id=run_id)
                say(f"run {run_id} in mode {spec.mode}")
                with progress_line(found.engine, run_id, err, total_items=data.validation.valid):
                    data.feed(found, run_id, spec, check)
                    wait_for_end(found.engine, run_id, check=check)
            report = reading.stored_report(found.engine, run_id)
            if report is None:
                raise RunError(f"run {run_id} ended without a report")
            reports.append(report)
    return reports


def facts_of(compared: Parity, reports: list[RunReport], *, show_text: bool) -> dict[str, object]:
    """The comparison as JSON has it."""
    return {
        "runs": {report.spec.mode.value: report.run_id for report in reports},
        "fingerprints": {report.spec.mode.value: report.fingerprint for report in reports},
        "items": compared.items,
        "agreement": compared.agreement,
        "confusion": {score: {generate: compared.cells[score, generate] for generate in _ENDS} for score in _ENDS},
        "disagreements_by_source": dict(compared.by_source.most_common()),
        "metrics": {report.spec.mode.value: {name: _average(report, name) for name in _COLUMNS} for report in reports},
        "items_per_s": {report.spec.mode.value: _rate(report) for report in reports},
        "speed_ratio": _speed_ratio(reports),
        "examples": [_example_facts(example, show_text=show_text) for example in compared.examples],
    }


def _example_facts(example: Example, *, show_text: bool) -> dict[str, object]:
    pair = example.pair
    facts: dict[str, object] = {
        "id": pair.item_id,
        "source": pair.source,
        "truth": pair.truth,
        "score": example.score,
        "p_unsafe": pair.p_unsafe,
        "generate": example.generate,
    }
    texts = {"question": pair.question, "response": pair.response, "raw": pair.raw}
    return facts | texts if show_text else facts


def _tables(compared: Parity, reports: list[RunReport], *, show_text: bool) -> Iterator[Text | Table]:
    differing = compared.by_source.total()
    yield Text(f"{compared.agreement:.2%} of {compared.items:,} items end alike; {differing:,} differ", style="bold")
    yield _confusion(compared)
    yield _metrics(reports)
    ratio = _speed_ratio(reports)
    if ratio is not None:
        yield Text(f"score is {ratio:,.1f} times as fast as generate (queueing and loading of the run included)")
    if compared.examples:
        yield _examples(compared, show_text=show_text)
        counts = ", ".join(
            f"{_clean(name) or 'no source'} {count:,}" for name, count in compared.by_source.most_common()
        )
        yield Text(f"differing by source: {counts}", style="dim")


def _confusion(compared: Parity) -> Table:
    shown = [end for end in _ENDS if any(end in cell for cell in compared.cells)]
    table = Table("score ╲ generate", *shown, box=None, pad_edge=False)
    for score in shown:
        table.add_row(score, *(f"{compared.cells[score, generate]:,}" for generate in shown))
    return table


def _metrics(reports: list[RunReport]) -> Table:
    table = Table("mode", *_COLUMNS, "items/s", box=None, pad_edge=False)
    for report in reports:
        values = [*(_average(report, name) for name in _COLUMNS), _rate(report)]
        table.add_row(report.spec.mode.value, *("–" if value is None else f"{value:.4f}" for value in values))
    return table


def _examples(compared: Parity, *, show_text: bool) -> Table:
    titles = ("item", "source", "truth", "score", "p(unsafe)", "generate", *(("text",) if show_text else ()))
    table = Table(*titles, box=None, pad_edge=False)
    for example in compared.examples:
        pair = example.pair
        p_unsafe = "–" if pair.p_unsafe is None else f"{pair.p_unsafe:.4f}"
        cells = [pair.item_id, pair.source, pair.truth or "–", example.score, p_unsafe, example.generate]
        if show_text:
            cells.append(f"{pair.question} ⏎ {pair.response}"[:_MAX_TEXT])
        table.add_row(*(Text(_clean(cell)) for cell in cells))
    return table


def _average(report: RunReport, metric: str) -> float | None:
    group = next((group for group in report.groups if group.kind == "average"), None)
    return group.value(metric) if group else None


def _rate(report: RunReport) -> float | None:
    return report.throughput.items_per_s if report.throughput else None


def _speed_ratio(reports: list[RunReport]) -> float | None:
    score, generate = (_rate(report) for report in reports)
    return score / generate if score and generate else None


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
