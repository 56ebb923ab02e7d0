"""The schedule of a drill: decided by its seed, fair by its mix."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from infra.errors import UsageError
from libra_fleet.drill.faults import EVERYTHING, Fault, parse_mix, plan


def test_the_same_seed_brings_the_same_faults() -> None:
    first, again, other = (list(islice(plan(seed, EVERYTHING), 50)) for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_every_round_holds_each_fault_as_often_as_the_mix_says() -> None:
    faults = [planned.fault for planned in islice(plan(3, {Fault.WORKER: 3, Fault.FLUSH: 1}), 8)]

    assert Counter(faults[:4]) == Counter(faults[4:]) == {Fault.WORKER: 3, Fault.FLUSH: 1}


def test_a_mix_is_read_from_names_and_weights() -> None:
    assert parse_mix("worker=3, flush") == {Fault.WORKER: 3, Fault.FLUSH: 1}


@pytest.mark.parametrize("text", ["", "meteor", "worker=0", "worker=x", "worker=-1"])
def test_a_mix_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--mix"):
        parse_mix(text)
