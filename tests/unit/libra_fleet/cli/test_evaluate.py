"""`libra eval` with several models: what one of them fails at does not take the others' results away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from infra.errors import DeviceError, GuardError, LibraError, RunError, UsageError
from libra_fleet.cli import evaluate
from libra_fleet.cli.main import libra
from libra_fleet.cli.models import gathered_models
from libra_fleet.cli.options import ReportOptions


@pytest.mark.parametrize("problem", [GuardError("cannot start"), DeviceError("out of memory"), RunError("no answer")])
def test_models_that_were_measured_are_shown_whatever_ends_another(
    problem: LibraError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_found: Any, job: Any, _data: Any, _fleet: Any, ended: Callable[[str], None]) -> None:
        if job.name == "broken":
            raise problem
        ended(job.name)

    shown: list[list[str]] = []
    monkeypatch.setattr(evaluate, "_measure", measure)
    monkeypatch.setattr(evaluate, "show_compared", lambda _found, runs, **_: shown.append(list(runs)))
    found: Any = None
    jobs: Any = [SimpleNamespace(name=name) for name in ("broken", "good")]

    with pytest.raises(RunError, match="1 of 2 models"):
        evaluate._measure_all(found, jobs, found, found, ReportOptions())

    assert shown == [["good"]]


def test_a_seed_without_a_sample_is_refused() -> None:
    done = CliRunner().invoke(libra, ["eval", "libra-tiny", "--seed", "3"])
    assert "--seed chooses the sample" in str(done.exception) + done.output


def test_several_reports_leave_no_empty_file_under_the_name_of_one(tmp_path: Path) -> None:
    words = ["eval", "libra-tiny", "fake", "--data", str(tmp_path / "none.jsonl"), "--no-local"]
    CliRunner().invoke(libra, [*words, "--out", str(tmp_path / "report.json")])
    assert {path.name for path in tmp_path.iterdir()} == {"report-libra-tiny.json", "report-fake.json"}


def test_a_tokenizer_is_that_of_a_server() -> None:
    with pytest.raises(UsageError, match="--tokenizer is that of a server's model"):
        gathered_models(["libra-tiny"], None, "./somewhere")


def test_a_name_that_is_taken_is_said_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = SimpleNamespace(engine=None)
    monkeypatch.setattr(evaluate, "find_run", lambda _engine, name: name == "mine")

    evaluate._require_new(found, "other")
    with pytest.raises(UsageError, match="there is a run named mine already"):
        evaluate._require_new(found, "mine")
