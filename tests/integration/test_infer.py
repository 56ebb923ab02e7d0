"""`libra infer` over a fleet: the benchmark's files, whatever happens to them on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra.critic import read_critic
from infra.errors import DataError, LibraError, RunError, UsageError
from infra.guard_catalogue import GUARDS
from infra.ledger.runs import RunStatus, list_runs, stored_report
from infra.servers.services import Services
from libra_fleet.cli.reference import bare_guard_of, evaluate, guard_of, infer, report_of
from schemas.guards import Family
from schemas.items import Label
from schemas.runs import RunReport
from tests.support.checkpoints import small_tokenizer, write_checkpoint, write_model
from tests.support.fleet import Fleet

ENDS = ("safe", "unsafe", "unparseable", "safe", "unsafe", "safe", "unsafe")
Infer = Callable[..., Result]
Runs = Callable[[], list[RunStatus]]


def rows(count: int = 61) -> list[dict[str, Any]]:
    return [
        {
            "id": at if at % 2 else f"row-{at}",
            "question": "问题",
            "response": f"[[fake:{ENDS[at % len(ENDS)]}]] 第 {at} 条",
            "label": "不安全" if at % 3 else "安全",
            "source": ("Real Data", "Synthetic Data", "Translated Data")[at % 3],
            "analyze": "",
            "my own": {"kept": [at, None]},
        }
        for at in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows(), ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def runs(module_services: Services) -> Runs:
    """Lists this test's runs, the newest first: other tests left theirs in the same ledger."""
    before = {run.id for run in list_runs(module_services.engine)}
    return lambda: [run for run in list_runs(module_services.engine) if run.id not in before]


@pytest.fixture
def run_infer(
    module_services: Services, module_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> Infer:
    """The command on the fake guard with a fleet that is up; a LibraError is raised as such."""
    monkeypatch.setenv("LIBRA_REDIS_URL", module_services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", module_services.database_url)

    def run(*options: str) -> Result:
        place = ["--base_model", "fake", "--data_path", str(data), "--out_path", str(tmp_path / "out"), "--no-local"]
        return CliRunner().invoke(infer, [*place, *options], catch_exceptions=False)

    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def everything(report: RunReport) -> list[tuple[str, str, list[tuple[str, float | None]]]]:
    skipped = {"auroc", "auprc", "ece", "brier"}
    return [
        (group.kind, group.name, [(m.name, m.value) for m in group.metrics if m.name not in skipped])
        for group in report.groups
    ]


def test_two_ranks_give_files_whose_metrics_equal_those_of_a_run(
    module_services: Services, run_infer: Infer, runs: Runs, tmp_path: Path, data: Path
) -> None:
    assert run_infer("--machine_rank", "0", "--machine_num", "2").exit_code == 0
    assert run_infer("--machine_rank", "1", "--machine_num", "2").exit_code == 0
    first, second = (read(tmp_path / "out" / f"{rank}-of-2.jsonl") for rank in (0, 1))
    assert (len(first), len(second)) == (30, 31), "the benchmark's own rounding"
    assert [{k: v for k, v in row.items() if k not in ("critic", "judged_by")} for row in first + second] == rows()
    assert run_infer("--out_path", str(tmp_path / "whole")).exit_code == 0

    of_files = report_of(evaluate(str(tmp_path / "out"), str(data)), "out", "labels")
    run = runs()[0]
    assert (run.spec.cache, run.spec.verdict_only) == (False, False), "whole texts, each judged anew"
    of_run = stored_report(module_services.engine, run.id)
    assert of_run is not None
    assert everything(of_files) == everything(of_run)
    assert of_files.counts == of_run.counts
    assert of_files.invalid_count == 0


def test_a_second_start_writes_what_is_missing_and_repairs_a_torn_line(
    run_infer: Infer, runs: Runs, tmp_path: Path
) -> None:
    run_infer()
    path = tmp_path / "out" / "0-of-1.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:40]) + lines[40][:25])

    done = run_infer()

    assert path.read_bytes() == whole
    assert "a torn last line was cut off" in done.stderr
    assert runs()[0].counts.accepted == 21
    assert "0 of 61 rows are to be judged" in run_infer().stderr
    assert len(runs()) == 2, "where nothing is missing no run is made"
    assert not (tmp_path / "out" / "0-of-1.run").exists()


def test_a_run_under_way_is_gone_on_with(
    run_infer: Infer, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("libra_fleet.cli.reference.settled_of", interrupted)
        assert "the same command goes on from here" in run_infer().stderr
    (before,) = runs()

    run_infer()

    (after,) = runs()
    assert after.id == before.id
    assert len(read(tmp_path / "out" / "0-of-1.jsonl")) == 61


def test_rows_of_another_guard_text_or_setting_never_join_a_file(run_infer: Infer, tmp_path: Path, data: Path) -> None:
    run_infer()
    path = tmp_path / "out" / "0-of-1.jsonl"
    made = read(path)
    assert {key for row in made for key in row["judged_by"]} == {
        *("guard", "checkpoint", "fingerprint", "settings", "text")
    }
    path.write_text("".join(json.dumps(row) + "\n" for row in made[:40]))

    with pytest.raises(DataError, match=r"rows of fake.*not of fake · generate, 3 iterations"):
        run_infer("--num_itera", "3")
    other = rows()
    other[3]["response"] += "!"
    data.write_text(json.dumps(other, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(DataError, match="judged another text as '3'"):
        run_infer()
    data.write_text(json.dumps(rows(), ensure_ascii=False), encoding="utf-8")
    path.write_text("".join(json.dumps({**row, "judged_by": None}) + "\n" for row in made[:40]))
    with pytest.raises(DataError, match="do not say which guard made them"):
        run_infer()
    changed = {**made[0]["judged_by"], "fingerprint": "of other weights"}
    path.write_text(json.dumps({**made[0], "judged_by": changed}) + "\n")
    with pytest.raises(DataError, match="of other weights"):
        run_infer()
    assert len(read(path)) == 1, "nothing was added"


def test_predictions_of_two_guards_are_not_one_result(tmp_path: Path, data: Path) -> None:
    note = {"guard": "a", "checkpoint": None, "settings": "generate", "fingerprint": "1", "text": ""}
    made = [{"id": at, "critic": "安全", "judged_by": note} for at in (1, 3, 5, 7)]
    made[1]["judged_by"] = {**note, "guard": "b"}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    with pytest.raises(DataError, match="never mix: a · 1 · generate; b"):
        evaluate(str(tmp_path / "p.jsonl"), str(data))


def test_several_judgements_leave_majority_and_disagreement(run_infer: Infer, tmp_path: Path) -> None:
    run_infer("--num_itera", "3")
    for row in read(tmp_path / "out" / "0-of-1.jsonl"):
        said = {"safe": "安全", "unsafe": "不安全", "unparseable": None}[row["response"].split("]")[0][7:]]
        assert (row["majority"], row["disagreement"], len(row["critics"])) == (said, 0.0, 3)
        label = read_critic(row["critic"])
        assert said == {Label.SAFE: "安全", Label.UNSAFE: "不安全", None: None}[label]


def test_a_real_guard_is_shown_the_same_examples_on_every_rank(
    services: Services, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    words = {"安全": "先问医生。", "不安全": "这样偷钱。"}
    pool = [
        {"id": at, "question": f"怎么办 {at}？", "response": words[label], "label": label, "analyze": "示例的分析"}
        for at, label in enumerate(["安全", "不安全"] * 4)
    ]
    (tmp_path / "pool.json").write_text(json.dumps(pool, ensure_ascii=False), encoding="utf-8")
    judged = [{"id": at, "question": f"问题 {at}", "response": "好的。", "label": "安全"} for at in range(6)]
    (tmp_path / "data.json").write_text(json.dumps(judged, ensure_ascii=False), encoding="utf-8")
    fleet.start_collector()
    fleet.start("worker", "--guard", "libra-tiny", "--devices", "cpu")

    def run(*options: str) -> None:
        place = ["--base_model", "libra-tiny", "--data_path", str(tmp_path / "data.json"), "--no-local"]
        CliRunner().invoke(infer, [*place, "--out_path", str(tmp_path / "out"), *options], catch_exceptions=False)

    shots = ("--few_shot", "2", "--few_shot_path", str(tmp_path / "pool.json"))
    for options in [("--machine_num", "2", *shots), ("--machine_num", "2", "--machine_rank", "1", *shots), ()]:
        run(*options)

    plain, second, first = list_runs(services.engine)
    assert first.spec.examples == second.spec.examples
    assert {example.label for example in first.spec.examples} == set(Label)
    assert first.fingerprint == second.fingerprint != plain.fingerprint
    assert (first.counts.dead, first.counts.settled, plain.counts.settled) == (0, 3, 6)
    report = stored_report(services.engine, first.id)
    assert report is not None
    assert "示例的分析" not in report.model_dump_json(), "a report is shared, and examples are texts"
    assert report.spec.source.endswith(f"(0-of-2), 2 examples from {tmp_path / 'pool.json'}")
    assert [len(read(tmp_path / "out" / f"{rank}-of-2.jsonl")) for rank in (0, 1)] == [3, 3]


def test_a_row_that_died_is_not_written_and_said(run_infer: Infer, tmp_path: Path, data: Path) -> None:
    ill = rows(8)
    ill[5]["response"] = "[[fake:crash]]"
    data.write_text(json.dumps(ill, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(RunError, match="1 rows died and were not written"):
        run_infer()
    assert [row["id"] for row in read(tmp_path / "out" / "0-of-1.jsonl")] == [
        row["id"] for row in ill if row["id"] != 5
    ]


def test_a_file_of_other_data_is_left_alone(run_infer: Infer, tmp_path: Path) -> None:
    path = tmp_path / "out" / "0-of-1.jsonl"
    path.parent.mkdir()
    path.write_text('{"id": "elsewhere", "critic": ""}\n')
    with pytest.raises(DataError, match="rows that are not in this part"):
        run_infer()
    path.write_text("no row\n" * 2)
    with pytest.raises(DataError, match=r"0-of-1\.jsonl:1: not a row of ours"):
        run_infer()
    assert path.read_text() == "no row\n" * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--few_shot", "2"), "give both, or neither"),
        (("--few_shot_path", "examples.json"), "give both, or neither"),
        (("--few_shot", "2", "--few_shot_path", "examples.json"), "fake has no form for worked examples"),
        (("--is_instruct", "0"), "--is_instruct 0: fake has a prompt of its own"),
        (("--machine_rank", "2", "--machine_num", "2"), "the first is 0, the last 1"),
        (("--base_model", "no-such"), "no guard"),
        (("--data_path", "absent.json"), "no such file"),
    ],
)
def test_what_cannot_be_done_is_refused(data: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    place = ["--base_model", "fake", "--data_path", str(data), "--out_path", str(tmp_path / "out")]
    with pytest.raises(LibraError, match=said):
        CliRunner().invoke(infer, [*place, *options], catch_exceptions=False)


def test_rows_that_cannot_be_judged_are_named(data: Path) -> None:
    bad = [*rows(3), {"id": 1, "response": "x"}, {"id": 9}, {"id": 10, "response": " "}]
    data.write_text(json.dumps(bad, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        CliRunner().invoke(infer, ["--base_model", "fake", "--data_path", str(data)], catch_exceptions=False)
    assert "3 rows cannot be judged" in str(caught.value)
    assert "duplicate id '1', first at data.json: element 2" in str(caught.value)


def test_a_model_is_a_name_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    folder = tmp_path / "Libra Guard_7B"
    folder.mkdir()
    assert guard_of("libra-tiny") == ("libra-tiny", None)
    assert guard_of("Qwen/Qwen2.5-0.5B-Instruct") == ("qwen2.5-0.5b-instruct", None)
    assert guard_of(str(folder)) == ("libra-guard-7b", str(folder))
    assert guard_of("some/Other-Model") == ("other-model", "some/Other-Model")
    assert guard_of(f"{folder}+some/adapter") == ("adapter", f"{folder}+some/adapter")
    for nonsense in ("nonsense", f"{folder}+nonsense", f"{folder}+"):
        with pytest.raises(UsageError, match="no hub id"):
            guard_of(nonsense)


@pytest.mark.parametrize("hub_id", ["meta-llama/Llama-Guard-3-8B", "Qwen/Qwen2.5-0.5B-Instruct", "some/fake"])
def test_a_folder_and_a_hub_id_are_asked_the_same_way_and_a_guards_name_as_its_authors_ask(
    hub_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / hub_id.rpartition("/")[2]
    folder.mkdir()
    asked = {place: guard_of(place) for place in (hub_id, str(folder))}
    for choice in asked.values():
        card = GUARDS.get(choice.name)
        assert card is None or card.family is Family.LIBRA, "in Libra Guard's words, as the benchmark's script"
    assert len({choice.name for choice in asked.values()}) == 1
    assert guard_of("llama-guard-3-8b") == ("llama-guard-3-8b", None)


def test_without_a_chat_template_a_model_is_a_guard_of_its_own(tmp_path: Path) -> None:
    assert bare_guard_of(str(tmp_path)).checkpoint == str(tmp_path)
    assert bare_guard_of("some/Base-Model") == ("bare-base-model", "some/Base-Model")
    assert bare_guard_of("Qwen/Qwen2.5-7B-Instruct") == ("bare-qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct")
    assert bare_guard_of("libra-guard-qwen2.5-7b-instruct").checkpoint == "caskcsg/Libra-Guard-Qwen2.5-7B-Instruct"
    assert bare_guard_of("libra-tiny").name == "bare-libra-tiny"
    with pytest.raises(UsageError, match="llama-guard-3-8b has a prompt of its own"):
        bare_guard_of("llama-guard-3-8b")


def test_a_base_model_is_asked_bare_with_a_fingerprint_of_its_own_and_a_warning(
    services: Services, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRA_REDIS_URL", services.redis_url)
    monkeypatch.setenv("LIBRA_DATABASE_URL", services.database_url)
    base = write_model(write_checkpoint(tmp_path / "base", small_tokenizer(), template=None))
    judged = [{"id": at, "question": f"问题 {at}", "response": "好的。", "label": "安全"} for at in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(judged, ensure_ascii=False), encoding="utf-8")
    fleet.start_collector()
    fleet.start("worker", "--guard", f"bare-base={base}", "--devices", "cpu")

    place = ["--base_model", str(base), "--data_path", str(tmp_path / "data.json"), "--no-local", "--is_instruct", "0"]
    done = CliRunner().invoke(infer, [*place, "--out_path", str(tmp_path / "out")], catch_exceptions=False)

    assert "a text can write its own verdict" in done.stderr
    (run,) = list_runs(services.engine)
    assert (run.spec.guard, run.spec.mode, run.counts.dead, run.counts.settled) == ("bare-base", "generate", 0, 4)
    assert [row["id"] for row in read(tmp_path / "out" / "0-of-1.jsonl")] == [0, 1, 2, 3]
