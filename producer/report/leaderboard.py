"""Several runs on one leaderboard, and each compared with the first: the tables of terminal, Markdown and page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from infra.ledger.stats import Volume
from producer.report.comparison import Comparison, SliceDisagreement
from producer.report.view import HEADLINE, average, is_imported, printable, short
from schemas.runs import Metric, RunReport

COLUMNS: Final = (
    *("Accuracy", "95 %", "F1-safe", "F1-unsafe", "AUROC", "Coverage"),
    *("items/s", "device-s/1,000", "tokens/item"),
)

COST_COLUMNS: Final = 3
"""The last ones: speed and cost."""

_TITLES: Final = dict(HEADLINE)


@dataclass(frozen=True)
class Ranking:
    """A run on the leaderboard: its report, and what it took."""

    report: RunReport
    volume: Volume

    @property
    def accuracy(self) -> float:
        """The value that the leaderboard is sorted by; a run without one is last."""
        group = average(self.report)
        value = group.value("accuracy") if group else None
        return -1.0 if value is None else value

    @property
    def device_s_per_1000(self) -> float | None:
        """Busy seconds of devices per 1,000 judgements, as workers measured them; None where none was measured."""
        cost = self.report.cost
        return cost.per_1000(cost.device_s) if cost and cost.measured else None

    @property
    def items_per_s(self) -> float | None:
        """Judgements per second by the ledger's clock; None where they were read from files."""
        speed = self.report.throughput
        return speed.items_per_s if speed and not is_imported(self.report) else None

    @property
    def tokens_per_item(self) -> float | None:
        """Prompt tokens per judgement."""
        settled = self.report.counts.settled
        return self.volume.prompt_tokens / settled if settled and self.volume.prompt_tokens else None

    @property
    def cells(self) -> tuple[str, ...]:
        """One for each of `COLUMNS`."""
        group = average(self.report)
        metric = group.metric if group else lambda _: None
        accuracy = metric("accuracy")
        bounds = accuracy.interval if accuracy else None
        return (
            _digits(accuracy),
            f"{short(bounds.low)}–{short(bounds.high)}" if bounds else "–",
            *(_digits(metric(name)) for name in ("f1_safe", "f1_unsafe", "auroc", "coverage")),
            _number(self.items_per_s, 1),
            _number(self.device_s_per_1000, 2),
            _number(self.tokens_per_item, 0),
        )


class Pairing(NamedTuple):
    """A run compared with the first one."""

    first: RunReport
    second: RunReport
    comparison: Comparison

    @property
    def coverage_said(self) -> str:
        """How many items are compared, and why not all."""
        found = self.comparison
        first, second = self.first.counts.settled, self.second.counts.settled
        left_out = [f"{found.dead:,} dead in one of them"] if found.dead else []
        left_out += [f"{found.other_text:,} with another text under the same id"] if found.other_text else []
        tail = f"; left out: {', '.join(left_out)}" if left_out else ""
        return f"{found.compared:,} judgements compared, of {first:,} and {second:,}{tail}"

    @property
    def agreement_said(self) -> str:
        """How often both say the same."""
        found = self.comparison
        return f"{found.alike / found.compared:.2%} alike" if found.compared else "nothing to compare"

    @property
    def test_said(self) -> str:
        """McNemar's test in a sentence; empty without human labels."""
        test = self.comparison.test
        if test is None:
            return ""
        how = "exact" if test.exact else "chi-square"
        return (
            f"only {self.first.name} right {test.first_only:,}, only {self.second.name} right {test.second_only:,}: "
            f"p {_p(test.p_value)} (McNemar, {how})"
        )

    @property
    def difference_rows(self) -> list[tuple[str, ...]]:
        """Metric, first, second, difference, interval."""
        rows: list[tuple[str, ...]] = []
        for one in self.comparison.differences:
            bounds = one.interval
            rows.append(
                (
                    _TITLES[one.metric],
                    _number(one.first, 4),
                    _number(one.second, 4),
                    "–" if one.difference is None else f"{one.difference:+.4f}",
                    f"{bounds.low:+.4f} to {bounds.high:+.4f}" if bounds else "–",
                )
            )
        return rows

    def disagreement_rows(self, by: dict[str, SliceDisagreement]) -> list[tuple[str, ...]]:
        """Slice, compared, only first right, only second right; the most divided slice first."""
        parts = sorted(by.items(), key=lambda found: (-(found[1].first_only + found[1].second_only), found[0]))
        return [
            (name or "(no source)", f"{part.compared:,}", f"{part.first_only:,}", f"{part.second_only:,}")
            for name, part in parts
        ]


def by_accuracy(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The runs, best first."""
    return sorted(rankings, key=lambda ranking: (-ranking.accuracy, ranking.report.name))


def _digits(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.4f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.4f}"


def to_markdown(rankings: Sequence[Ranking], pairings: Sequence[Pairing]) -> str:
    """A comparison as Markdown: the leaderboard, then each run compared with the first."""
    parts = [
        _table(
            ("Run", "Guard", "n", *COLUMNS),
            [
                (one.report.name, one.report.spec.guard, f"{one.report.counts.accepted:,}", *one.cells)
                for one in rankings
            ],
            left=2,
        )
    ]
    for pairing in pairings:
        parts += _pairing_parts(pairing)
    return "\n\n".join(parts)


def _pairing_parts(pairing: Pairing) -> Iterator[str]:
    first, second = _safe(pairing.first.name), _safe(pairing.second.name)
    yield f"### {second} compared with {first}"
    said = [pairing.coverage_said, pairing.agreement_said, pairing.test_said]
    yield _safe("; ".join(filter(None, said))) + "."
    if pairing.comparison.differences:
        yield _table(("Average", first, second, "Difference", "95 %"), pairing.difference_rows)
        yield _table(
            ("Source", "compared", f"only {first}", f"only {second}"),
            pairing.disagreement_rows(pairing.comparison.by_source),
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    rule = [":--" if at < left else "--:" for at in range(len(head))]
    lines = [head, rule, *([_safe(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """A name from data as plain text: no table, link, image or HTML of its own."""
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", printable(text))
