"""The `libra` command as a whole: names new and old, help that is quick and never cut, options of one spelling."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from libra_fleet.cli.commands import COMMANDS, OLD_COMMANDS, Entry, LazyGroup
from libra_fleet.cli.main import libra

REFERENCE = ("infer", "metrics")
"""Commands with the reference's own flags."""

WITHOUT_JSON = {
    *("fleet up", "fleet worker", "fleet collector", "fleet gateway", "fleet webhooks", "fleet exporter"),
    *("fleet health", "run export", "infer", "train", "completion", "webhooks send"),
    *("webhooks endpoints remove", "webhooks endpoints enable", "policy default"),
    *("run dead show", "policy show", "submit"),  # print JSON and nothing else
}
"""Commands that print no facts, or JSON alone."""


def walk(group: LazyGroup, *path: str) -> Iterator[tuple[str, Entry | None, click.Command]]:
    """Every command below a group with its name and its line of the table."""
    for name, found in {**group._table, **group._old}.items():
        command = found.load(name) if isinstance(found, Entry) else found
        yield " ".join((*path, name)), found if isinstance(found, Entry) else None, command
        if isinstance(command, LazyGroup):
            yield from walk(command, *path, name)


EVERY = list(walk(libra))
NEW = [(name, command) for name, _, command in EVERY if name.partition(" ")[0] in COMMANDS]
LEAVES = [(name, command) for name, command in NEW if not isinstance(command, click.Group)]


@pytest.mark.parametrize(
    "name",
    """
    bench run · bench submit · bench watch · bench resume · bench cancel · bench list · bench status · bench report
    bench compare · bench parity · verify · export · import · cost · dead list · dead show · dead retry · remoderate
    cascade fit · cascade report · capacity · worker · collector · gateway · webhooks send · webhooks replay · status
    doctor · health · migrate · metrics-exporter · drill · up · purge · curate combine
    run start · run show · run choose-thresholds · run rejudge · run dead list · fleet up · fleet worker
    fleet webhooks · fleet exporter · data curate combine · data purge · webhooks resend · guards show · judge · submit
    """.replace("\n", " · ").split("·"),
)
def test_every_name_old_or_new_has_help_that_begins_with_a_sentence(name: str) -> None:
    if not name.strip():
        return
    shown = CliRunner().invoke(libra, [*name.split(), "--help"], catch_exceptions=False)

    assert shown.exit_code == 0
    assert re.match(r"Usage: .*?\n\n  [A-Z][^\n]*", shown.output, re.DOTALL)


@pytest.mark.parametrize(("name", "command"), [(name, command) for name, _, command in EVERY])
def test_the_help_of_every_command_begins_with_a_whole_sentence(name: str, command: click.Command) -> None:
    first = (command.help or "").partition("\n\n")[0]

    assert re.fullmatch(r"[A-Z][^.]*(\.\w[^.]*)*\.", first.replace("\n", " ")), (name, first)


@pytest.mark.parametrize(("name", "entry", "command"), [found for found in EVERY if found[1]])
def test_the_table_and_the_command_say_the_same(name: str, entry: Entry, command: click.Command) -> None:
    assert (command.help or "").partition("\n\n")[0].replace("\n", " ") == entry.help, name


@pytest.mark.parametrize("group", [libra, *(command for _, command in NEW if isinstance(command, LazyGroup))])
def test_help_lists_every_command_with_its_whole_sentence_at_80_columns(group: LazyGroup) -> None:
    shown = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    words = " ".join(shown.partition("Commands:")[2].split())

    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in words
    for name, found in group._table.items():
        sentence = found.help if isinstance(found, Entry) else (found.help or "").partition("\n\n")[0]
        assert f"{name} {' '.join((sentence or '').split())}" in words


def test_old_names_work_and_are_not_listed() -> None:
    listed = libra.list_commands(click.Context(libra))

    assert not set(OLD_COMMANDS) & set(listed)
    assert len(listed) <= 14


def test_help_and_completion_load_no_server() -> None:
    script = (
        "import sys; from libra_fleet.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    code = ended.code\nelse:\n    code = 0\n"
        "heavy = [name for name in ('celery', 'redis', 'sqlalchemy', 'rich', 'torch') if name in sys.modules]\n"
        "sys.stderr.write(f'{code} {heavy}')"
    )
    completing = {"_LIBRA_COMPLETE": "bash_complete", "COMP_WORDS": "libra run ch", "COMP_CWORD": "2"}
    command = [sys.executable, "-P", "-c", script]

    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=os.environ)
    completed = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **completing})

    assert completed.stdout.split() == ["plain,choose-thresholds"]
    assert (helped.stderr, completed.stderr) == ("0 []", "0 []")


def test_bash_itself_completes_a_command(tmp_path: Path) -> None:
    command = tmp_path / "libra"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m libra_fleet.cli "$@"\n')
    command.chmod(0o755)
    session = (
        'eval "$(libra completion bash)"\n'
        "COMP_WORDS=(libra run ch); COMP_CWORD=2\n"
        "$(complete -p libra | sed 's/.*-F \\([^ ]*\\) .*/\\1/') libra\n"
        'echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = subprocess.run(["bash", "-c", session], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout.split() == ["choose-thresholds"], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code_for_each_shell(shell: str) -> None:
    shown = CliRunner().invoke(libra, ["completion", shell])

    assert shown.exit_code == 0
    assert "_LIBRA_COMPLETE" in shown.output


def test_every_command_that_prints_facts_has_json() -> None:
    lacking = {
        name for name, command in LEAVES if "--json" not in {flag for one in command.params for flag in one.opts}
    }

    assert {name for name in lacking if not name.startswith("data curate ")} == WITHOUT_JSON


def test_options_are_spelled_in_kebab_case_and_say_what_they_do() -> None:
    for name, command in LEAVES:
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, f"{name} {option.name}"
                if name not in REFERENCE:
                    assert all("_" not in flag for flag in option.opts), f"{name} {option.opts}"


def test_options_of_the_fake_guard_are_hidden() -> None:
    shown = CliRunner().invoke(libra, ["fleet", "worker", "--help"]).output

    assert "--guard" in shown
    assert "--fake" not in shown


def test_the_price_of_a_device_hour_has_one_spelling_and_its_old_one_works() -> None:
    shown = CliRunner().invoke(libra, ["run", "cost", "--help"]).output

    assert "--price-per-device-hour" in shown
    assert "gpu" not in shown
