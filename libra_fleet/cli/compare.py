"""`libra run compare` and `libra run parity`: runs over the same items, compared pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich import box
from rich.table import Table
from rich.text import Text

from infra.errors import RunError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger import intake
from infra.ledger.items import both_settled, settled_of, texts_of
from infra.ledger.runs import run_status, stored_report
from infra.ledger.stats import volume
from infra.servers.services import Services
from libra_fleet.cli.context import connected, detaching, fleet_for
from libra_fleet.cli.options import (
    GuardChoice,
    LocalFleetOptions,
    guard_option,
    html_option,
    json_option,
    no_text_option,
    sample_limit_option,
    seed_option,
    takes_fleet,
)
from libra_fleet.cli.run import checked, follow
from libra_fleet.cli.show import out, pages, print_json, save_page, say, writable
from producer.report.comparison import (
    COLUMNS,
    COST_COLUMNS,
    Comparison,
    Pairing,
    Parity,
    Ranking,
    by_accuracy,
    ends_of,
    to_markdown,
)
from producer.report.view import average, figure, printable
from schemas.guards import Mode
from schemas.runs import RunReport

_EXAMPLES_SHOWN: Final = 10
_MODES: Final = (Mode.SCORE, Mode.GENERATE)
_PARITY_METRICS: Final = ("accuracy", "f1_safe", "f1_unsafe", "balanced_accuracy", "coverage")
_ENDS: Final = ("safe", "unsafe", "unparseable", "dead")
_MAX_TEXT: Final = 200


@click.command()
@click.argument("runs", metavar="RUN RUN…", nargs=-1)
@html_option
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@no_text_option
@json_option
def compare(*, runs: tuple[str, ...], html: Path | None, markdown: bool, no_text: bool, as_json: bool) -> None:
    """Compare runs that have ended.

    They are put on one leaderboard, and each is compared with the first over the items that both judged: paired
    bootstrap, McNemar's test, and where they disagree.
    """
    if len(runs) < 2:
        raise UsageError("name two runs or more")
    if markdown and as_json:
        raise UsageError("--markdown or --json, not both")
    if html:
        pages()
        writable("--html", html)
    with connected() as found:
        show_compared(found, runs, html=html, with_text=not no_text, markdown=markdown, as_json=as_json)


def show_compared(
    found: Services,
    runs: Sequence[str],
    *,
    html: Path | None = None,
    with_text: bool = True,
    markdown: bool = False,
    as_json: bool = False,
) -> None:
    """Put runs that have ended on one leaderboard, each compared with the first, and write the page."""
    rankings = [_ranking(found, run) for run in runs]
    ids = [one.report.run_id for one in rankings]
    if len(set(ids)) < len(ids):
        raise UsageError("a run is named twice")
    first = rankings[0].report
    pairings = [
        Pairing(first, other.report, Comparison.of(both_settled(found.engine, first.run_id, other.report.run_id)))
        for other in rankings[1:]
    ]
    ranked = by_accuracy(rankings)
    if html:
        texts = {
            one.second.run_id: texts_of(found.engine, first.run_id, [row.seq for row in one.comparison.examples])
            for one in (pairings if with_text else ())
        }
        save_page(html, pages().board_page(ranked, pairings, texts))
    if as_json:
        print_json({"board": list(map(_ranking_facts, ranked)), "contests": list(map(_pairing_facts, pairings))})
    elif markdown:
        click.echo(to_markdown(ranked, pairings))
    else:
        _show_comparison(ranked, pairings)


def _ranking(found: Services, run: str) -> Ranking:
    status = run_status(found.engine, run)
    report = stored_report(found.engine, status.id)
    if report is None:
        raise UsageError(f"run {status.name} is {status.state}: it can be compared when it has ended")
    return Ranking(report, volume(found.engine, status.id))


def _ranking_facts(ranking: Ranking) -> dict[str, object]:
    report = ranking.report
    group = average(report)
    return {
        "run": report.run_id,
        "name": report.name,
        "guard": report.spec.guard,
        "mode": report.spec.mode.value,
        "fingerprint": report.fingerprint,
        **report.counts.model_dump(),
        "average": {metric.name: metric.value for metric in group.metrics} if group else {},
        "items_per_s": ranking.items_per_s,
        "device_s_per_1000": ranking.device_s_per_1000,
        "tokens_per_item": ranking.tokens_per_item,
    }


def _pairing_facts(pairing: Pairing) -> dict[str, object]:
    found = pairing.comparison
    return {
        "first": pairing.first.run_id,
        "second": pairing.second.run_id,
        "compared": found.compared,
        "left_out": {"dead": found.dead, "other_text": found.other_text},
        "alike": found.alike,
        "labelled": found.labelled,
        "mcnemar": found.test._asdict() if found.test else None,
        "differences": [
            {**one._asdict(), "interval": one.interval.model_dump() if one.interval else None}
            for one in found.differences
        ],
        "by_source": {name: vars(part) for name, part in found.by_source.items()},
        "by_category": {name: vars(part) for name, part in found.by_category.items()},
        "examples": [
            {"id": row.item_id, "source": row.source, "truth": row.truth, "labels": row.labels, "p_unsafe": row.scores}
            for row in found.examples
        ],
    }


def _show_comparison(ranked: Sequence[Ranking], pairings: Sequence[Pairing]) -> None:
    quality = len(COLUMNS) - COST_COLUMNS
    out.print(
        _table(
            ("Run", "n", *COLUMNS[:quality]),
            [(one.report.name, f"{one.report.counts.accepted:,}", *one.cells[:quality]) for one in ranked],
        )
    )
    out.print(Text())
    out.print(_table(("Run", *COLUMNS[quality:]), [(one.report.name, *one.cells[quality:]) for one in ranked]))
    for pairing in pairings:
        out.print(Text())
        out.print(Text(printable(f"{pairing.second.name} compared with {pairing.first.name}"), style="bold"))
        out.print(Text(f"{pairing.coverage_said}; {pairing.agreement_said}"))
        if pairing.test_said:
            out.print(Text(printable(pairing.test_said)))
        if pairing.difference_rows:
            out.print(Text())
            out.print(_table(("Average", "first", "second", "difference", "95 %"), pairing.difference_rows))
        if examples := pairing.comparison.examples[:_EXAMPLES_SHOWN]:
            out.print(Text())
            rows = []
            for row in examples:
                sides = zip(row.labels, row.scores, strict=True)
                ends = [
                    cell for label, score in sides for cell in (label.value if label else "unparseable", figure(score))
                ]
                rows.append((row.item_id, row.source, str(row.truth or "–"), *ends))
            out.print(_table(("Differ most on", "source", "truth", "first", "p", "second", "p"), rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for at, title in enumerate(head):
        table.add_column(
            title, justify="right" if at else "left", overflow="fold", min_width=0 if at else 8, no_wrap=at > 0
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


@click.command()
@click.argument("source")
@guard_option
@sample_limit_option
@seed_option
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
    """Judge a data set in two modes and show where they differ.

    The modes are score and generate.
    """
    card = GUARDS.get(guard.name)
    if card and not set(_MODES) <= set(card.modes):
        raise UsageError(f"{guard.name} has not both modes, score and generate")
    specs = [guard.spec(mode, source, limit=limit, seed=seed) for mode in _MODES]
    with connected() as found, checked(source, specs[0]) as data:
        found.coordination  # noqa: B018 - servers that cannot be reached are said before anything starts
        found.engine  # noqa: B018
        reports = []
        with fleet_for(found, specs[0], fleet) as fleet_lives:  # one fleet judges both runs, one after the other
            for spec in specs:
                run_id = intake.new_run_id()
                with detaching(found, run_id, fleet_lives) as check:
                    intake.create_run(found.engine, spec, run_id=run_id)
                    say(f"run {run_id} in mode {spec.mode}")
                    follow(found, run_id, spec, check, data=data, total_items=data.validation.valid)
                report = stored_report(found.engine, run_id)
                if report is None:
                    raise RunError(f"run {run_id} ended without a report")
                reports.append(report)
        score_run, generate_run = (report.run_id for report in reports)
        compared = Parity.of(both_settled(found.engine, score_run, generate_run))
        ids = [row.item_id for row in compared.examples]
        texts = texts_of(found.engine, score_run, [row.seq for row in compared.examples]) if show_text else {}
        raws = settled_of(found.engine, generate_run, ids) if show_text else {}
        examples = []
        for row in compared.examples:
            score, generate = ends_of(row)
            facts: dict[str, object] = {"id": row.item_id, "source": row.source, "truth": row.truth, "score": score}
            facts |= {"p_unsafe": row.scores[0], "generate": generate}
            if row.seq in texts:
                question, response = texts[row.seq]
                facts |= {"question": question, "response": response, "raw": raws[row.item_id][0].raw}
            examples.append(facts)
    if as_json:
        modes = [mode.value for mode in _MODES]
        cells = compared.cells
        print_json(
            {
                "runs": dict(zip(modes, (report.run_id for report in reports), strict=True)),
                "fingerprints": dict(zip(modes, (report.fingerprint for report in reports), strict=True)),
                "items": compared.items,
                "agreement": compared.agreement,
                "confusion": {score: {generate: cells[score, generate] for generate in _ENDS} for score in _ENDS},
                "disagreements_by_source": dict(compared.by_source.most_common()),
                "metrics": dict(zip(modes, map(_averages, reports), strict=True)),
                "items_per_s": dict(zip(modes, map(_rate, reports), strict=True)),
                "speed_ratio": _speed_ratio(reports),
                "examples": examples,
            }
        )
    else:
        _show_parity(compared, reports, examples)
    if require is not None and compared.agreement < require:
        raise RunError(f"score and generate agree on {compared.agreement:.4f} of the items, below {require:g}")


def _show_parity(compared: Parity, reports: list[RunReport], examples: list[dict[str, object]]) -> None:
    differing = compared.by_source.total()
    out.print(
        Text(f"{compared.agreement:.2%} of {compared.items:,} items end alike; {differing:,} differ", style="bold")
    )
    shown = [end for end in _ENDS if any(end in cell for cell in compared.cells)]
    rows = [(score, *(f"{compared.cells[score, generate]:,}" for generate in shown)) for score in shown]
    out.print(_table(("score ╲ generate", *shown), rows))
    out.print(
        _table(
            ("mode", *_PARITY_METRICS, "items/s"),
            [
                (
                    report.spec.mode.value,
                    *map(figure, _averages(report).values()),
                    figure(_rate(report)).replace(",", ""),
                )
                for report in reports
            ],
        )
    )
    ratio = _speed_ratio(reports)
    if ratio is not None:
        out.print(Text(f"score is {ratio:,.1f} times as fast as generate (queueing and loading of the run included)"))
    if examples:
        with_text = ("text",) if "response" in examples[0] else ()
        rows = []
        for row, one in zip(compared.examples, examples, strict=True):
            score, generate = ends_of(row)
            texts = [f"{one['question']} ⏎ {one['response']}"[:_MAX_TEXT]] if with_text else []
            ends = (score, figure(row.scores[0]), generate)
            rows.append((row.item_id, row.source, str(row.truth or "–"), *ends, *texts))
        out.print(_table(("item", "source", "truth", "score", "p(unsafe)", "generate", *with_text), rows))
        counts = (f"{name or 'no source'} {count:,}" for name, count in compared.by_source.most_common())
        out.print(Text(printable(f"differing by source: {', '.join(counts)}"), style="dim"))


def _averages(report: RunReport) -> dict[str, float | None]:
    group = average(report)
    return {name: group.value(name) if group else None for name in _PARITY_METRICS}


def _rate(report: RunReport) -> float | None:
    return report.throughput.items_per_s if report.throughput else None


def _speed_ratio(reports: list[RunReport]) -> float | None:
    score, generate = map(_rate, reports)
    return score / generate if score and generate else None
