"""The `libra` command as its users meet it: environment, streams and exit code, in this process or its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click
import pytest
from click.testing import CliRunner

from infra.process import wait_until
from libra_fleet.cli.main import libra, main
from tests.support.fleet import ROOT

WAIT_S = 60.0


class _Main:
    """`main()` in the form that click's runner calls."""

    name = "libra"

    def main(self, args: list[str], prog_name: str) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", [prog_name, *args])
            main()


class Cli:
    """Runs commands in one folder with one environment."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LIBRA_")}
        self._own = environment
        self._environment = {**inherited, "PYTHONPATH": str(ROOT), **environment}

    def start(
        self, *arguments: str, stderr: IO[str] | int = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a terminal would."""
        return subprocess.Popen(
            [sys.executable, "-m", "libra_fleet.cli", *arguments],
            env={**self._environment, **environment},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            # A test run in the background of a script ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread here holds locks
        )

    def __call__(self, *arguments: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in this process, which takes a fraction of the time of one of its own."""
        unset = {name: None for name in os.environ if name.startswith("LIBRA_")}
        log = logging.getLogger()
        handlers, level = log.handlers[:], log.level
        try:
            with contextlib.chdir(self.folder):
                runner = CliRunner(env={**unset, **self._own, **environment})
                done = runner.invoke(_Main(), list(arguments), input=typed)  # type: ignore[arg-type]
        finally:  # the command's log went to a stream that is gone
            log.handlers[:] = handlers
            log.setLevel(level)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    def process(self, *arguments: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as a process of its own."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(typed, timeout=WAIT_S)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, typed: str = "") -> Any:
        """What a command that must succeed prints with --json; nothing else may be on standard output."""
        done = self(*arguments, "--json", typed=typed)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def interrupt_when(self, condition: Callable[[], bool], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command and press Ctrl-C, once, when the condition holds."""
        process = self.start(*arguments)
        try:
            met = wait_until(lambda: condition() or process.poll() is not None, timeout_s=WAIT_S)
            assert met, "the condition never held"
            assert process.poll() is None, f"it ended before Ctrl-C: {process.communicate()}"
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
        finally:
            if process.poll() is None:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def require_command(words: list[str]) -> None:
    """Parse `libra` with these words, down to the last sub-command, and run nothing.

    Raises:
        click.UsageError: there is no such command, or it has no such option.
    """
    command: click.Command = libra
    context = click.Context(libra)
    while isinstance(command, click.Group) and words:  # our groups have no options of their own
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(context.info_name, list(words), parent=context.parent)
