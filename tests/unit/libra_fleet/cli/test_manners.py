"""How a command behaves in the terminals, environments and pipes that people have; each in a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from infra.settings import load_settings, unknown_settings
from libra_fleet.cli import show as cli_show
from libra_fleet.cli.options import _gate
from libra_fleet.client import AsyncClient
from schemas.items import Label, LibraRecord


def libra(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-P", "-m", "libra_fleet.cli", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, errors="replace", check=False
    )


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "ascii"])
def test_what_an_encoding_lacks_is_replaced_and_no_traceback_is_shown(encoding: str, tmp_path: Path) -> None:
    found = libra("guards", "show", "libra-tiny", PYTHONIOENCODING=encoding, LIBRA_STATE_DIR=str(tmp_path))

    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr


def test_a_misspelt_command_gets_a_suggestion() -> None:
    found = libra("rnu")

    assert found.returncode == 2
    assert "Did you mean run?" in found.stderr


def test_a_misspelt_setting_is_said_at_the_start() -> None:
    found = libra("guards", "list", LIBRA_BULK_THRED="3")

    assert found.returncode == 0
    assert "nothing reads LIBRA_BULK_THRED; did you mean LIBRA_BULK_THREADS?" in found.stderr


def test_variables_of_a_kubernetes_service_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBRA_GATEWAY_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("LIBRA_GATEWAY_PORT_8000_TCP_ADDR", "10.0.0.1")

    assert not [name for name in unknown_settings() if name.startswith("LIBRA_GATEWAY")]


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBRA_OTLP_ENDPOINT", "")

    assert load_settings().otlp_endpoint is None


@pytest.mark.parametrize("floor", ["90", "1.01", "-90"])
def test_a_gate_that_no_metric_can_reach_is_refused(floor: str) -> None:
    with pytest.raises(click.BadParameter, match="at most 1"):
        _gate(f"accuracy={floor}")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_the_client_takes_no_proxy_from_the_environment(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "socks5://127.0.0.1:9")

    async def mounted() -> int:
        async with AsyncClient("http://127.0.0.1:8000", "key") as client:
            return len(client._http._mounts)

    assert asyncio.run(mounted()) == 0


@pytest.mark.parametrize(
    ("word", "label"), [("Safe", Label.SAFE), (" UNSAFE ", Label.UNSAFE), ("不安全\n", Label.UNSAFE)]
)
def test_a_label_may_differ_in_case_and_blanks(word: str, label: Label) -> None:
    assert LibraRecord.model_validate({"id": "a", "response": "x", "label": word}).to_item().truth is label


def test_a_numeric_label_is_refused_with_the_words_that_are_expected() -> None:
    with pytest.raises(ValueError, match="1 says neither safe nor unsafe"):
        LibraRecord.model_validate({"id": "a", "response": "x", "label": 1})


def on_a_terminal(*arguments: str, columns: int = 80, **environment: str) -> tuple[int, str]:
    """The command on a terminal of its own; its exit code, and all that it showed there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "libra_fleet.cli", *arguments],
        env={**plain, "TERM": "xterm-256color", **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65_536):
            shown += piece
    except OSError:  # how Linux says that nobody writes there any more
        pass
    os.close(master)
    return process.wait(60), shown.decode(errors="replace").replace("\r\n", "\n")


def test_an_error_is_red_on_a_terminal() -> None:
    code, shown = on_a_terminal("run", "show", "nix", LIBRA_REDIS_URL="redis://127.0.0.1:1")

    assert code
    assert "\x1b[31m" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_an_error_keeps_to_no_colour_even_on_a_terminal(environment: dict[str, str]) -> None:
    code, shown = on_a_terminal("run", "show", "nix", LIBRA_REDIS_URL="redis://127.0.0.1:1", **environment)

    assert code
    assert "libra: " in shown
    assert "\x1b" not in shown
    assert "Traceback" not in shown


@pytest.fixture
def on_columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, Callable[[], None]], str]:
    """What a function prints on a terminal of so many columns; on None: into a pipe."""

    monkeypatch.delenv("COLUMNS", raising=False)

    def printed(columns: int | None, show: Callable[[], None]) -> str:
        stream = io.StringIO()
        console = type(cli_show.out)(
            highlight=False, file=stream, force_terminal=columns is not None, width=columns, no_color=True
        )
        monkeypatch.setattr(cli_show, "out", console)
        show()
        return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())

    return printed


WIDE_ROWS = [("msg_" + "0123456789abcdef" * 3, "https://hooks.example.org/a/very/long/path?with=query", "failed: 503")]


@pytest.mark.parametrize("columns", [None, 200, 80, 60, 20])
def test_ids_and_addresses_are_never_cut_or_folded(columns: int | None, on_columns: Any) -> None:
    shown = on_columns(columns, lambda: cli_show.print_listing(("id", "to", "state"), WIDE_ROWS))

    for cell in WIDE_ROWS[0]:
        assert cell in shown
    assert "…" not in shown


def test_a_pipe_gets_a_row_a_line_whatever_its_length(on_columns: Any) -> None:
    shown = on_columns(None, lambda: cli_show.print_listing(("id", "to", "state"), WIDE_ROWS * 3))

    assert len(shown.splitlines()) == 4


def test_a_narrow_terminal_gets_a_block_for_each_row(on_columns: Any) -> None:
    shown = on_columns(60, lambda: cli_show.print_listing(("id", "to", "state"), WIDE_ROWS))

    assert shown.splitlines()[-1] == "  state: failed: 503"


def test_a_gateway_on_a_used_port_says_so_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = libra("fleet", "gateway", "--port", port, LIBRA_REDIS_URL="", LIBRA_DATABASE_URL="")

    assert found.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in found.stderr
    assert "gateway on" not in found.stdout + found.stderr
