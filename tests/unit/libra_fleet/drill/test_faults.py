"""The schedule of a drill: decided by its seed, fair by its mix."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from infra.errors import UsageError
from libra_fleet.drill.faults import FAULTS, everything, parse_mix, plan

EVERYTHING = everything(own_servers=True, own_disk=True)


def test_the_same_seed_brings_the_same_faults() -> None:
    first, again, other = (list(islice(plan(seed, EVERYTHING), 50)) for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_every_round_holds_each_fault_as_often_as_the_mix_says() -> None:
    faults = [planned.fault.name for planned in islice(plan(3, {"worker": 3, "flush": 1}), 8)]

    assert Counter(faults[:4]) == Counter(faults[4:]) == {"worker": 3, "flush": 1}


def test_a_mix_is_read_from_names_and_weights() -> None:
    assert parse_mix("worker=3, flush") == {"worker": 3, "flush": 1}


@pytest.mark.parametrize("text", ["", "meteor", "worker=0", "worker=x", "worker=-1"])
def test_a_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--mix"):
        parse_mix(text)


def test_what_needs_servers_or_a_disk_of_the_drills_own_is_left_out_without_them() -> None:
    assert set(EVERYTHING) == set(FAULTS)
    left_out = set(FAULTS) - set(everything(own_servers=False, own_disk=False))
    assert {"postgres", "promote", "read-only", "full-disk"} <= left_out
    assert not {"worker", "stop-collector", "poison-consumer", "clock-back"} & left_out
