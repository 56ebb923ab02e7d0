"""The log of a process."""

from __future__ import annotations

import logging

import pytest

from infra.log import configure_logging


def test_a_traceback_on_the_console_shows_no_local_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """Local variables hold users' texts."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("info", "console")
        text = "".join(["SECRET", " user text"])
        try:
            _fails(text)
        except ZeroDivisionError:
            logging.getLogger("libra").exception("it failed")
    finally:
        root.handlers[:], root.level = handlers, level
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown
    assert text not in shown


def _fails(question: str) -> float:
    return len(question) / 0
