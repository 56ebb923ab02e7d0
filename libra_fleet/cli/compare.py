"""`libra bench compare`: runs on one leaderboard, and each beside the first over the items that both judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click
from rich import box
from rich.table import Table
from rich.text import Text

from infra.errors import UsageError
from infra.ledger import evidence, reading
from infra.ledger.comparing import both_settled, texts_of
from infra.servers.services import Services
from libra_fleet.cli.context import connected, save_page, writable
from libra_fleet.cli.options import html_option, json_option
from libra_fleet.cli.show import out, print_json
from producer.report.comparison import Comparison
from producer.report.leaderboard import COLUMNS, COST_COLUMNS, Contest, Ranking, by_accuracy
from producer.report.markdown import to_markdown
from schemas.items import Label

_EXAMPLES_SHOWN: Final = 10


@click.command()
@click.argument("runs", metavar="RUN RUN…", nargs=-1)
@html_option
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@click.option("--no-text", is_flag=True, help="Leave the items' texts out of the page.")
@json_option
def compare(*, runs: tuple[str, ...], html: Path | None, markdown: bool, no_text: bool, as_json: bool) -> None:
    """Compare runs that have ended: a leaderboard, and each run beside the first.

    Beside the first a run is compared over the items that both judged: paired bootstrap, McNemar's test, and where
    they disagree.
    """
    if len(runs) < 2:
        raise UsageError("name two runs or more")
    if markdown and as_json:
        raise UsageError("--markdown or --json, not both")
    write = _page_writer() if html else None
    if html:
        writable("--html", html)
    with connected() as found:
        standings = [_standing(found, run) for run in runs]
        ids = [one.report.run_id for one in standings]
        if len(set(ids)) < len(ids):
            raise UsageError("a run is named twice")
        contests = [_contest(found, standings[0], other) for other in standings[1:]]
        _print(standings, contests, markdown=markdown, as_json=as_json)
        if html and write:
            texts = {} if no_text else {one.second.run_id: _texts(found, one) for one in contests}
            save_page(html, write(by_accuracy(standings), contests, texts))


def _page_writer() -> Callable[..., str]:
    try:
        from producer.report.leaderboard_page import board_page  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(f"pages need another package ({error}): pip install 'libra-fleet[report]'") from error
    return board_page


def _standing(found: Services, run: str) -> Ranking:
    status = reading.run_status(found.engine, run)
    report = reading.stored_report(found.engine, status.id)
    if report is None:
        raise UsageError(f"run {status.name} is {status.state}: it can be compared when it has ended")
    return Ranking(report, evidence.volume(found.engine, status.id))


def _contest(found: Services, first: Ranking, second: Ranking) -> Contest:
    rows = both_settled(found.engine, first.report.run_id, second.report.run_id)
    return Contest(first.report, second.report, Comparison.of(rows))


def _texts(found: Services, contest: Contest) -> dict[int, tuple[str, str]]:
    seqs = [row.seq for row in contest.comparison.examples]
    return texts_of(found.engine, contest.first.run_id, seqs)


def _print(standings: Sequence[Ranking], contests: Sequence[Contest], *, markdown: bool, as_json: bool) -> None:
    board = by_accuracy(standings)
    if as_json:
        print_json({"board": list(map(_standing_facts, board)), "contests": list(map(_contest_facts, contests))})
    elif markdown:
        click.echo(to_markdown(board, contests))
    else:
        for part in _parts(board, contests):
            out.print(part)


def _standing_facts(standing: Ranking) -> dict[str, object]:
    report = standing.report
    average = next((group for group in report.groups if group.kind == "average"), None)
    return {
        "run": report.run_id,
        "name": report.name,
        "guard": report.spec.guard,
        "mode": report.spec.mode.value,
        "fingerprint": report.fingerprint,
        **report.counts.model_dump(),
        "average": {metric.name: metric.value for metric in average.metrics} if average else {},
        "items_per_s": standing.items_per_s,
        "device_s_per_1000": standing.device_s_per_1000,
        "tokens_per_item": standing.tokens_per_item,
    }


def _contest_facts(contest: Contest) -> dict[str, object]:
    found = contest.comparison
    return {
        "first": contest.first.run_id,
        "second": contest.second.run_id,
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


def _parts(board: Sequence[Ranking], contests: Sequence[Contest]) -> Iterator[Text | Table]:
    names = [one.report.name for one in board]
    counted = [(f"{one.report.counts.accepted:,}", *one.cells) for one in board]
    quality = len(COLUMNS) - COST_COLUMNS + 1
    yield _table(
        ("Run", "n", *COLUMNS[:-COST_COLUMNS]), [(n, *row[:quality]) for n, row in zip(names, counted, strict=True)]
    )
    yield Text()
    yield _table(
        ("Run", *COLUMNS[-COST_COLUMNS:]), [(n, *row[quality:]) for n, row in zip(names, counted, strict=True)]
    )
    for contest in contests:
        yield Text()
        yield Text(_clean(f"{contest.second.name} beside {contest.first.name}"), style="bold")
        yield Text(f"{contest.coverage_said}; {contest.agreement_said}")
        if contest.test_said:
            yield Text(_clean(contest.test_said))
        if contest.difference_rows:
            yield Text()
            yield _table(("Average", "first", "second", "difference", "95 %"), contest.difference_rows)
        yield from _examples(contest)


def _examples(contest: Contest) -> Iterator[Text | Table]:
    examples = contest.comparison.examples[:_EXAMPLES_SHOWN]
    if not examples:
        return
    yield Text()
    rows = [
        (
            row.item_id,
            row.source,
            str(row.truth or "–"),
            *_said(row.labels[0], row.scores[0]),
            *_said(row.labels[1], row.scores[1]),
        )
        for row in examples
    ]
    yield _table(("Differ most on", "source", "truth", "first", "p", "second", "p"), rows)


def _said(label: Label | None, score: float | None) -> tuple[str, str]:
    return label.value if label else "unparseable", "–" if score is None else f"{score:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for at, title in enumerate(head):
        table.add_column(
            title, justify="right" if at else "left", overflow="fold", min_width=0 if at else 8, no_wrap=at > 0
        )
    for row in rows:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    return table


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
