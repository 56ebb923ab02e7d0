"""Several runs on one leaderboard, and each beside the first: the tables that terminal, Markdown and page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from infra.ledger.evidence import Volume
from producer.report.comparison import Comparison, SliceDisagreement
from producer.report.view import HEADLINE, average, is_imported, short
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
    """A run on the board: its report, and what it took."""

    report: RunReport
    volume: Volume

    @property
    def accuracy(self) -> float:
        """What the board is sorted by; a run without is last."""
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
        metric = group.metric if group else _nothing
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


class Contest(NamedTuple):
    """A run beside the first one of the board."""

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

    def apart_rows(self, by: dict[str, SliceDisagreement]) -> list[tuple[str, ...]]:
        """Slice, compared, only first right, only second right; the most divided slice first."""
        parts = sorted(by.items(), key=lambda found: (-(found[1].first_only + found[1].second_only), found[0]))
        return [
            (name or "(no source)", f"{part.compared:,}", f"{part.first_only:,}", f"{part.second_only:,}")
            for name, part in parts
        ]


def by_accuracy(standings: Sequence[Ranking]) -> list[Ranking]:
    """Best first."""
    return sorted(standings, key=lambda standing: (-standing.accuracy, standing.report.name))


def _nothing(_: str) -> Metric | None:
    return None


def _digits(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.4f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"= {value:.4f}"
