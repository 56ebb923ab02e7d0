"""A cascade as written on a command line."""

from __future__ import annotations

import pytest

from schemas.guards import Mode
from schemas.runs import NextStage, RunSpec
from tests.support.requests import requested


def test_a_cascade_is_a_run_of_its_first_guard_with_the_others_to_follow() -> None:
    spec = requested("--guard", "cascade:libra-tiny@0.02:0.98>mine=fake>libra-guard-qwen2.5-7b-instruct", "--cache")

    assert isinstance(spec, RunSpec)
    assert (spec.guard, spec.mode) == ("libra-tiny", Mode.SCORE)
    assert spec.stages == (
        NextStage(guard="mine", checkpoint="fake", sure_below=0.02, sure_above=0.98),
        NextStage(guard="libra-guard-qwen2.5-7b-instruct", sure_below=0.05, sure_above=0.95),
    )
    second = spec.next_stage("r1")
    assert (second.guard, second.checkpoint, second.parent, second.cache) == ("mine", "fake", "r1", True)
    assert second.stages == spec.stages[1:]
    assert second.next_stage("r1-next").stages == ()


def test_thresholds_come_from_the_options_where_a_stage_names_none() -> None:
    spec = requested("--guard", "cascade:libra-tiny>fake", "--sure-below", "0.1", "--sure-above", "0.9")

    assert isinstance(spec, RunSpec)
    assert [(stage.sure_below, stage.sure_above) for stage in spec.stages] == [(0.1, 0.9)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("cascade:libra-tiny",), "two stages or more"),
        (("cascade:fake>libra-tinny",), "did you mean libra-tiny"),
        (("cascade:fake>fake",), "a guard of its own"),
        (("cascade:libra-tiny>fake@0.1:0.9",), "settles everything"),
        (("cascade:libra-tiny@0.1>fake",), "NAME@BELOW:ABOVE"),
        (("cascade:libra-tiny@0.9:0.1>fake",), "nothing lies between"),
        (("cascade:libra-tiny>fake", "--mode", "score"), "goes with no --mode"),
        (("cascade:libra-tiny>fake", "--repeat", "2"), "goes with no --mode"),
    ],
)
def test_what_is_no_cascade_is_said_before_anything_is_read(options: tuple[str, ...], said: str) -> None:
    assert said in " ".join(str(requested("--guard", *options)).split())


def test_a_run_without_stages_is_written_as_before() -> None:
    spec = requested("--guard", "fake")

    assert isinstance(spec, RunSpec)
    assert "stages" not in spec.model_dump_json()
