"""What a drill holds against the fleet."""

from __future__ import annotations

from libra_fleet.drill.faults import FAULTS
from libra_fleet.drill.report import ChunkEnd, InjectedFault, broken_bounds, lines_of


def injected(
    fault: str = "worker",
    *,
    recovered: float | None = 15.0,
    went_on: float | None = None,
    chunks: tuple[str, ...] = ("r/0",),
) -> InjectedFault:
    return InjectedFault(
        1,
        FAULTS[fault],
        "python 1",
        looked=9.9,
        at=10.0,
        over=11.0,
        chunks=set(chunks),
        went_on=went_on,
        recovered=recovered,
    )


def end(*, wasted: int = 0, attempt: int = 1, settled_at: float | None = 9.5) -> ChunkEnd:
    return ChunkEnd(size=16, attempt=attempt, wasted=wasted, settled_at=settled_at)


def test_a_recovery_within_lease_and_grace_is_no_breach() -> None:
    assert broken_bounds([injected()], {"r/0": end(wasted=16, attempt=2)}, lease_s=3) == []


def test_a_slow_recovery_and_none_at_all_are_breaches() -> None:
    slow, never = injected(recovered=30.0), injected(recovered=None)

    assert len(broken_bounds([slow, never], {}, lease_s=3)) == 2


def test_work_in_vain_that_no_fault_explains_is_a_breach() -> None:
    (breach,) = broken_bounds([injected()], {"r/1": end(wasted=1)}, lease_s=3)

    assert breach.startswith("chunk r/1: 1 of 16")


def test_a_killed_broker_may_forget_what_had_just_been_acknowledged() -> None:
    ends = {"r/1": end(wasted=1, settled_at=9.5), "r/2": end(settled_at=2.0)}

    assert broken_bounds([injected("valkey")], ends, lease_s=3) == []
    assert lines_of([injected("valkey")], ends, 0.0)[0].in_flight_items == 16


def test_what_settled_between_the_look_and_the_end_of_a_fault_was_in_flight() -> None:
    within, before = {"r/1": end(wasted=1, settled_at=9.95)}, {"r/1": end(wasted=1, settled_at=9.8)}

    assert broken_bounds([injected()], within, lease_s=3) == []
    assert len(broken_bounds([injected()], before, lease_s=3)) == 1


def test_a_chunk_is_charged_to_the_first_fault_that_hit_it() -> None:
    first, second = lines_of([injected(), injected()], {"r/0": end(attempt=2, wasted=3)}, 0.0)

    assert (first.tried_again_items, first.wasted_items) == (16, 3)
    assert (second.tried_again_items, second.wasted_items) == (0, 0)


def test_while_one_process_stands_still_the_others_are_held_to_the_bound_from_its_start() -> None:
    in_time, never = injected("stop-device", went_on=12.0), injected("stop-device", went_on=None)
    late = injected("stop-device", went_on=40.0)

    assert broken_bounds([in_time], {}, lease_s=3) == []
    assert len(broken_bounds([never, late], {}, lease_s=3)) == 2
