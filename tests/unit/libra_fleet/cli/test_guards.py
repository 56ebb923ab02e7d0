"""`libra guards` and `libra guards show`."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from infra.guard_catalogue import GUARDS
from libra_fleet.cli.commands import COMMANDS
from libra_fleet.cli.options import GuardChoice, mode_for
from schemas.guards import NOT_PINNED, Mode
from tests.support.checkpoints import small_tokenizer, write_checkpoint
from tests.support.families import write_family
from worker.guards.show import describe


def run(*arguments: str) -> str:
    result = CliRunner().invoke(COMMANDS["guards"], arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_card_is_listed_with_its_status() -> None:
    listed = {row["name"]: row for row in json.loads(run("--json"))}

    assert listed.keys() == GUARDS.keys()
    assert listed["chillguard-8b"]["status"] == "format unknown"
    assert listed["wildguard"]["revision_note"] == NOT_PINNED
    table = run()
    assert all(name in table for name in GUARDS)


def test_a_guard_is_shown_with_its_familys_format() -> None:
    shown = run("show", "qwen3guard-gen-8b")

    assert "Qwen/Qwen3Guard-Gen-8B" in shown
    assert NOT_PINNED in shown
    assert shown.rstrip().endswith("[user]\n{question}\n[assistant]\n{response}\n[assistant, in score mode]\nSafety:")


def test_a_checkpoint_at_hand_renders_its_own_prompt(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "guard", GUARDS["llama-guard-3-8b"], weights=False)

    shown = json.loads(run("show", f"llama-guard-3-8b={folder}", "--json"))

    assert shown["licence"] == "Llama 3.1 Community"
    assert "User: {question}\n\nAgent: {response}" in shown["prompt"]
    assert shown["prompt"].startswith("<|begin_of_text|>")


@pytest.mark.parametrize("name", GUARDS)
def test_every_guard_can_be_described(name: str) -> None:
    assert describe(name)


def test_a_guard_of_ones_own_is_described(tmp_path: Path) -> None:
    assert "{question}" in describe("mine", str(write_checkpoint(tmp_path, small_tokenizer())))


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("libra-tiny", None, Mode.SCORE),
        ("wildguard", None, Mode.GENERATE),
        ("cold-detector", None, Mode.CLASSIFY),
        ("mine", None, Mode.SCORE),
        ("mine", "classify", Mode.CLASSIFY),
        ("libra-tiny", "generate", Mode.GENERATE),
    ],
)
def test_a_run_takes_the_guards_usual_mode(name: str, mode: str | None, expected: Mode) -> None:
    assert mode_for(GuardChoice(name, None), mode) is expected


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("wildguard", "score", "wildguard has no mode score; it has generate"),
        ("chillguard-8b", None, "cannot be run .format unknown"),
    ],
)
def test_a_mode_that_a_guard_has_not_is_refused(name: str, mode: str | None, message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        mode_for(GuardChoice(name, None), mode)


@pytest.mark.parametrize(
    "command", ["guards check mine=a --checkpoint b", "fleet worker --guard mine=a --checkpoint b"]
)
def test_a_checkpoint_is_named_in_one_place(command: str) -> None:
    group, *arguments = command.split()
    result = CliRunner().invoke(COMMANDS[group], arguments)
    assert result.exit_code == 2
    assert "mine=a names a checkpoint already" in result.output.replace("\n", " ")
