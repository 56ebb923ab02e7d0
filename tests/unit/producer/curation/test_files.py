"""Stages: killed ones are resumed, finished ones left alone, mixed ones refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra.errors import UsageError
from libra_fleet.cli import data as module
from libra_fleet.cli.commands import CURATE
from producer.curation.files import Placed, carry_out, in_file, path_of, read_note, rows_of


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": str(at), "question": "问"} for at in range(count)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(CURATE, [str(argument) for argument in arguments], catch_exceptions=False)


def made_to(folder: Path, count: int) -> None:
    """The stages before annotation, small."""
    for command in (("combine", folder, "--count", count), ("queries", folder, "--per-combination", 2)):
        assert run(*command).exit_code == 0
    assert run("augment", folder, "--variants", 2).exit_code == 0
    assert run("responses", folder).exit_code == 0


def test_a_killed_stage_is_resumed_and_has_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    def dies_after(count: int) -> Iterator[Placed]:
        yield from in_file("queries", rows(count))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "a", "queries", {}, lambda: dies_after(300))
    with path_of(tmp_path / "a", "queries").open("a") as file:
        file.write('{"id": "torn')
    with pytest.raises(UsageError, match="no finished queries"):
        next(rows_of(tmp_path / "a", "queries"))
    for folder in ("a", "b"):
        assert carry_out(tmp_path / folder, "queries", {}, lambda: in_file("queries", rows(600)))
    assert path_of(tmp_path / "a", "queries").read_bytes() == path_of(tmp_path / "b", "queries").read_bytes()


def test_a_finished_stage_is_not_made_again(tmp_path: Path) -> None:
    carry_out(tmp_path, "queries", {"seed": (1, None)}, lambda: in_file("queries", rows(3)))

    def never() -> Iterator[Placed]:
        raise AssertionError

    assert not carry_out(tmp_path, "queries", {"seed": (1, None)}, never)


def test_other_options_or_another_input_are_refused(tmp_path: Path) -> None:
    carry_out(tmp_path, "combinations", {"seed": 1}, lambda: in_file("combinations", rows(3)))
    with pytest.raises(UsageError, match="seed 1, not 2"):
        carry_out(tmp_path, "combinations", {"seed": 2}, lambda: in_file("combinations", rows(3)))

    carry_out(tmp_path, "queries", {}, lambda: in_file("queries", rows(3)), made_of="combinations")
    path_of(tmp_path, "combinations").write_text('{"id": "other"}\n')
    with pytest.raises(UsageError, match="input"):
        carry_out(tmp_path, "queries", {}, lambda: in_file("queries", rows(3)), made_of="combinations")
    note = read_note(tmp_path, "queries")
    assert note is not None
    assert note["done"]


def test_the_same_seed_gives_the_same_bytes_through_all_stages(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        made_to(folder, 39)
    for stage in ("combinations", "queries", "augmented", "responses"):
        assert path_of(tmp_path / "a", stage).read_bytes() == path_of(tmp_path / "b", stage).read_bytes()


def test_every_row_says_where_it_comes_from_and_of_which_row(tmp_path: Path) -> None:
    made_to(tmp_path, 39)
    parents = {row["id"] for row in rows_of(tmp_path, "combinations")}
    for stage in ("queries", "augmented", "responses"):
        found = list(rows_of(tmp_path, stage))
        for row in found:
            assert set(row["provenance"]) == {"origin", "licence", "generator", "stage", "parent_id", "seed"}
            assert row["provenance"]["parent_id"] in parents
        parents |= {row["id"] for row in found}


def test_harmful_and_harmless_queries_are_equally_many(tmp_path: Path) -> None:
    made_to(tmp_path, 39)
    intents = [row["intent"] for row in rows_of(tmp_path, "queries")]
    assert len(intents) == 39 * 4
    assert intents.count("harmful") == intents.count("harmless")


def test_status_counts_rows_by_label_and_licence(tmp_path: Path) -> None:
    made_to(tmp_path, 2)
    assert "responses" in run("status", tmp_path).stdout
    assert run("elements").stdout.count("\n") > 39


def test_a_stage_without_the_one_before_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(CURATE, ["queries", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert "no finished combinations" in str(result.exception)


@pytest.mark.parametrize("flag", ["--generator", "--writer"])
def test_generators_write_queries_wordings_and_answers(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, dict[str, str]] = {}

    def ask(_: object, __: object, guard: Any, items: Any, **options: object) -> str:
        run = f"{guard.name}-{len(asked)}"
        asked[run] = {item.id: f"{item.response}说" for item in items()}
        return run

    def texts_of(_: object, run: str) -> Any:
        def read(item_ids: Sequence[str]) -> dict[str, str]:
            return {
                item_id: f"{len(item_id)}说说看，{item_id}怎么样？" for item_id in item_ids if item_id in asked[run]
            }

        return read

    monkeypatch.setattr(module, "connected", lambda: nullcontext(SimpleNamespace(engine=None)))
    monkeypatch.setattr(module, "_ask", ask)
    monkeypatch.setattr(module, "texts_of", texts_of)
    licence = ("--licence", "MIT")
    assert run("combine", tmp_path, "--count", 2).exit_code == 0
    assert run("queries", tmp_path, flag, f"{flag[2:]}=some/model", *licence).exit_code == 0
    assert (
        run("augment", tmp_path, "--variants", 0, "--similarity", 1, flag, f"{flag[2:]}=some/model", *licence).exit_code
        == 0
    )
    pair = (flag, f"{flag[2:]}-a=model/a", flag, f"{flag[2:]}-b=model/b")
    assert run("responses", tmp_path, *pair, *licence).exit_code == 0
    assert [len(items) for items in asked.values()] == [4, 4, 8, 8]
    assert {row["provenance"]["generator"] for row in rows_of(tmp_path, "queries")} == {"writer:some/model"}
    answers = list(rows_of(tmp_path, "responses"))
    assert {row["provenance"]["origin"] for row in answers} == {"model/a", "model/b"}
    assert {row["id"].rpartition("-")[2] for row in answers} == {"a", "b"}
    assert isinstance(CliRunner().invoke(CURATE, ["queries", str(tmp_path), *pair]).exception, UsageError)
