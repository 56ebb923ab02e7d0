"""How a command behaves in the terminals, environments and pipes that people have; each in a process of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from infra.settings import load_settings, unknown_settings
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


def test_an_error_keeps_to_no_colour_even_on_a_terminal() -> None:
    found = libra("run", "show", "nix", "--json", NO_COLOR="1", FORCE_COLOR="", LIBRA_REDIS_URL="redis://127.0.0.1:1")

    assert found.returncode
    assert "\x1b" not in found.stderr
    assert "Traceback" not in found.stderr
