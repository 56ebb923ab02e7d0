"""A user's own modules in the current folder neither take the place of ours nor are executed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.process import python_module, wait_until
from tests.support.fleet import ROOT
from tests.support.processes import stop

WAIT_S = 120.0
NAMES = ("schemas", "worker", "producer", "libra_fleet", "celeryconfig", "infra/__init__", "redis/__init__")
COMMANDS = {
    "as an installed command is run": python_module("libra_fleet.cli"),
    "as `python -m` and accelerate do": [sys.executable, "-m", "libra_fleet.cli"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose modules leave a mark when they are executed."""
    folder = tmp_path / "mine"
    for name in NAMES:
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name + ' '!r})\nraise ImportError('mine')\n")
    (folder / "data.jsonl").write_text('{"id": "1", "text": "甲"}\n{"id": "2", "text": "乙"}\n')
    yield folder
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()


def environment(folder: Path) -> dict[str, str]:
    """The package is found by an absolute path, as an installed one is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIBRA_")}
    return {**kept, "PYTHONPATH": str(ROOT), "LIBRA_STATE_DIR": str(folder.parent / "state")}


def test_a_run_with_a_fleet_of_its_own_works_in_a_folder_of_foreign_modules(folder: Path) -> None:
    """The command, the keeper of the servers, collector, worker, device process and consumers."""
    command = [*COMMANDS["as an installed command is run"], "bench", "run", "data.jsonl", "--guard", "fake", "--json"]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=WAIT_S, check=False
    )

    assert done.returncode == 0, done.stderr
    assert '"settled": 2' in done.stdout


def test_libra_up_works_in_a_folder_of_foreign_modules(folder: Path) -> None:
    """As above, with gateway and sender of webhooks."""
    said = folder.parent / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [
                *COMMANDS["as an installed command is run"],
                "up",
                "--guard",
                "fake",
                "--devices",
                "cpu",
                "--port",
                "18765",
            ],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        ready = wait_until(lambda: "everything is ready" in said.read_text() or not _lives(process), timeout_s=WAIT_S)
        assert ready
        assert _lives(process), said.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        stop(process, grace_s=WAIT_S)


@pytest.mark.parametrize("how", COMMANDS)
def test_however_python_starts_the_command_a_foreign_module_is_not_imported(folder: Path, how: str) -> None:
    (folder / "libra_fleet.py").unlink()  # `python -m` itself would take it
    done = subprocess.run(
        [*COMMANDS[how], "guards", "--json"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def _lives(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None
