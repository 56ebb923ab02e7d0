"""What becomes of the options that say how much work a run may be spared."""

from __future__ import annotations

import pytest

from schemas.runs import RunSpec
from tests.support.requests import requested


@pytest.mark.parametrize(
    ("options", "cache", "verdict_only"),
    [
        ([], False, False),
        (["--cache"], True, False),
        (["--mode", "generate"], False, True),
        (["--mode", "generate", "--analysis"], False, False),
        (["--mode", "score", "--analysis", "--no-cache"], False, False),
    ],
)
def test_a_benchmark_is_judged_anew_and_writes_no_more_than_its_verdict(
    options: list[str], cache: bool, verdict_only: bool
) -> None:
    spec = requested(*options)

    assert isinstance(spec, RunSpec)
    assert (spec.cache, spec.verdict_only) == (cache, verdict_only)


def test_a_repetition_cannot_be_taken_from_the_cache() -> None:
    assert "goes with no --cache" in str(requested("--repeat", "3", "--cache"))
    assert isinstance(requested("--repeat", "3"), RunSpec)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label", "unsafe=1,2", "--label", "safe=0,1"], "1 means unsafe already"),
        (["--field", "response=answer", "--field", "text=body"], "text is read from 'answer' already"),
        (["--encoding", "hex"], "--encoding hex: not known"),
        (["--encoding", "rot13"], "--encoding rot13: not known"),
        (["--encoding", "idna"], "--encoding idna: not known"),
    ],
)
def test_a_reading_that_contradicts_itself_or_is_none_is_refused(options: list[str], said: str) -> None:
    assert said in str(requested(*options)).replace("\n", " ")
