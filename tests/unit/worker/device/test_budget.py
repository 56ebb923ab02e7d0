"""Which token budget is found, on a device that is a formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.device.engines.base import OutOfMemory
from worker.device.engines.budget import BudgetBook, fastest_budget


class Device:
    """Takes the seconds that a formula says, on a clock of its own; has memory for so many tokens."""

    def __init__(self, seconds: Callable[[int], float], memory: int = 1 << 30) -> None:
        self._seconds, self._memory = seconds, memory
        self.now = 0.0
        self.largest = 0

    def run(self, tokens: int) -> None:
        if tokens > self._memory:
            raise OutOfMemory("no more")
        self.largest = max(self.largest, tokens)
        self.now += self._seconds(tokens)

    def budget(self, *, patience_s: float = 1e9) -> int:
        return fastest_budget(self.run, smallest=256, largest=16_384, patience_s=patience_s, clock=lambda: self.now)


def test_a_device_with_a_cost_per_batch_gets_the_smallest_batch_that_hides_it() -> None:
    assert Device(lambda tokens: 0.1 + tokens / 1_000).budget() == 4_096


def test_a_device_that_is_no_faster_with_more_gets_the_smallest_batch() -> None:
    device = Device(lambda tokens: tokens / 1_000)

    assert device.budget() == 256
    assert device.largest == 2_048, "three doublings without a gain are enough"


def test_a_device_that_grows_slower_keeps_the_size_before() -> None:
    assert Device(lambda tokens: (0.1 + tokens / 1_000) * (1 if tokens <= 1_024 else 1.5)).budget() == 1_024


def test_trying_ends_with_the_first_batch_that_takes_too_long() -> None:
    device = Device(lambda tokens: 0.5 + tokens / 100_000)

    assert device.budget(patience_s=0.51) == 1_024


def test_a_device_that_runs_out_of_memory_keeps_half_of_what_fitted_free() -> None:
    assert Device(lambda _: 1.0, memory=4_096).budget() == 2_048


def test_a_device_without_memory_for_the_smallest_batch_says_so() -> None:
    with pytest.raises(OutOfMemory):
        Device(lambda _: 1.0, memory=100).budget()


def test_a_budget_is_found_once_and_then_recalled(tmp_path: Path) -> None:
    found = iter([512, 1_024])
    book = BudgetBook(tmp_path / "budgets")

    first, again, other = (book.recall(key, lambda: next(found)) for key in ("a", "a", "b"))

    assert (first, again, other) == (512, 512, 1_024)


@pytest.mark.parametrize("noted", ["", "{}", "[]", '{"max_batch_tokens": -1}', '{"max_batch_tokens": "x"}', "\0"])
def test_a_note_that_makes_no_sense_is_written_anew(tmp_path: Path, noted: str) -> None:
    (tmp_path / "a.json").write_text(noted)

    assert BudgetBook(tmp_path).recall("a", lambda: 512) == 512
    assert BudgetBook(tmp_path).recall("a", lambda: 1_024) == 512


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "budgets").write_text("a file where the folder should be")

    assert BudgetBook(tmp_path / "budgets").recall("a", lambda: 512) == 512


def test_a_slow_moment_while_a_size_is_first_tried_does_not_decide() -> None:
    slow_moment = iter([1.0, 1.0, 3.0, 1.0, 2.0])
    device = Device(lambda tokens: (0.1 + tokens / 1_000) * next(slow_moment, 1.0))

    assert device.budget() == 4_096


def test_memory_that_runs_out_in_a_later_round_lowers_the_budget_and_ends_no_start() -> None:
    device = Device(lambda _: 1.0)
    rounds = iter([1 << 30] * 7 + [1_024] * 99)  # a neighbour takes its memory after the first round
    run = device.run

    def shrinking(tokens: int) -> None:
        device._memory = next(rounds)
        run(tokens)

    device.run = shrinking  # type: ignore[method-assign]

    assert device.budget() == 512


def test_memory_that_runs_out_everywhere_in_a_later_round_leaves_the_smallest_budget() -> None:
    device = Device(lambda _: 1.0)
    rounds = iter([1 << 30] * 7 + [0] * 99)
    run = device.run

    def shrinking(tokens: int) -> None:
        device._memory = next(rounds)
        run(tokens)

    device.run = shrinking  # type: ignore[method-assign]

    assert device.budget() == 256
