"""The walk of docs/curation.md gives what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from libra_fleet.cli.commands import CURATE
from producer.curation.files import rows_of

PAGE = (Path(__file__).parents[4] / "docs" / "curation.md").read_text(encoding="utf-8")
WITHOUT_A_FLEET = ("combine", "queries", "augment", "responses")


def test_the_walk_gives_the_counts_and_the_row_that_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line)[3:] for line in block.splitlines()]
    assert [command[0] for command in commands] == [*WITHOUT_A_FLEET, "annotate", "status"]
    for command in commands[: len(WITHOUT_A_FLEET)]:
        assert CliRunner().invoke(CURATE, command, catch_exceptions=False).exit_code == 0

    stages = ("combinations", "queries", "augmented", "responses")
    counts = [len(list(rows_of(Path("rows"), stage))) for stage in stages]
    assert "{} combinations, {} queries, {} after augmentation".format(*counts) in PAGE
    assert f"{counts[-1]:,} answers" in PAGE
    shown = json.loads(re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0])
    (made,) = (row for row in rows_of(Path("rows"), "responses") if row["id"] == shown["id"])
    assert all(made[name] == shown[name] for name in ("question", "response", "category_name", "sub_category_name"))
