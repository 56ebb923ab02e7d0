"""A comparison as Markdown tables, to be pasted where papers and issues are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from producer.report.leaderboard import COLUMNS, Contest, Ranking


def to_markdown(standings: Sequence[Ranking], contests: Sequence[Contest]) -> str:
    """The leaderboard, then each run beside the first."""
    parts = [_table(("Run", "Guard", "n", *COLUMNS), [_standing(one) for one in standings], left=2)]
    for contest in contests:
        parts += _contest(contest)
    return "\n\n".join(parts)


def _standing(standing: Ranking) -> tuple[str, ...]:
    report = standing.report
    return report.name, report.spec.guard, f"{report.counts.accepted:,}", *standing.cells


def _contest(contest: Contest) -> Iterator[str]:
    first, second = _safe(contest.first.name), _safe(contest.second.name)
    yield f"### {second} beside {first}"
    said = [contest.coverage_said, contest.agreement_said, contest.test_said]
    yield _safe("; ".join(filter(None, said))) + "."
    if contest.comparison.differences:
        yield _table(("Average", first, second, "Difference", "95 %"), contest.difference_rows)
        yield _table(
            ("Source", "compared", f"only {first}", f"only {second}"), contest.apart_rows(contest.comparison.by_source)
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    rule = [":--" if at < left else "--:" for at in range(len(head))]
    lines = [head, rule, *([_safe(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """A name from data as plain text: no table, link, image or HTML of its own."""
    printable = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", printable)
