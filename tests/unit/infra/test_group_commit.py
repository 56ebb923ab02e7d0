"""Joint calls: each caller gets its own result, whoever made the call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.group_commit import GroupCommit
from infra.process import wait_until


class QualityGate:
    """Doubles numbers, refuses odd ones, and holds its first call until it is opened."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.opened = threading.Event()

    def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.calls.append(numbers)
        self.opened.wait(30)
        return [ValueError(f"{number} is odd") if number % 2 else 2 * number for number in numbers]


def test_a_lone_caller_waits_for_nobody() -> None:
    gate = QualityGate()
    gate.opened.set()

    assert GroupCommit(gate, at_most=8)(4) == 8


def test_whoever_comes_during_a_call_goes_with_the_next_one() -> None:
    gate = QualityGate()
    double = GroupCommit(gate, at_most=8)

    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(double, 0)
        assert wait_until(lambda: gate.calls == [[0]], timeout_s=10)
        others = [pool.submit(double, number) for number in (2, 4, 6, 8)]
        assert wait_until(lambda: len(double._waiting) == 4, timeout_s=10)
        gate.opened.set()

        assert [future.result(10) for future in (first, *others)] == [0, 4, 8, 12, 16]
    assert [sorted(numbers) for numbers in gate.calls] == [[0], [2, 4, 6, 8]]


def test_a_refusal_reaches_only_the_caller_it_is_meant_for() -> None:
    gate = QualityGate()
    double = GroupCommit(gate, at_most=8)

    with ThreadPoolExecutor(3) as pool:
        futures = {number: pool.submit(double, number) for number in (0, 1, 2)}
        gate.opened.set()

        assert (futures[0].result(10), futures[2].result(10)) == (0, 4)
        with pytest.raises(ValueError, match="1 is odd"):
            futures[1].result(10)


def test_what_the_call_raises_reaches_every_caller_and_the_next_call_works() -> None:
    act: Callable[[list[int]], list[int]]

    def act(numbers: list[int]) -> list[int]:
        if -1 in numbers:
            raise OSError("away")
        return numbers

    same = GroupCommit(act, at_most=2)
    with pytest.raises(OSError, match="away"):
        same(-1)
    assert same(1) == 1


def test_a_joint_call_takes_no_more_than_it_may_and_nobody_is_left_behind() -> None:
    gate = QualityGate()
    double = GroupCommit(gate, at_most=3)

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(double, number) for number in range(0, 24, 2)]
        assert wait_until(lambda: len(double._waiting) == 11, timeout_s=10)
        gate.opened.set()

        assert [future.result(10) for future in futures] == list(range(0, 48, 4))
    assert max(map(len, gate.calls)) == 3
