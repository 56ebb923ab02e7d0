"""`libra infer` before it judges anything: how it reads the data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.errors import UsageError
from libra_fleet.cli import reference
from libra_fleet.cli.main import libra


def test_data_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for stream in ("-", str(tmp_path / "pipe")):
        done = CliRunner().invoke(libra, ["infer", "--base_model", "libra-tiny", "--data_path", stream], input="{}")
        assert isinstance(done.exception, UsageError)
        assert "a stream can be read only once" in str(done.exception)


def test_what_is_guessed_of_the_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "text,is_safe\n" + "今天天气很好，我们一起去公园散步吧,true\n" * 20
    (tmp_path / "x.csv").write_text(lines, encoding="gb18030")

    reference._say_how_read(str(tmp_path / "x.csv"))

    said = capsys.readouterr().err
    assert "read as gb18030, a guess" in said
    assert "label from 'is_safe'" in said
