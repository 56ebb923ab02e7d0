"""`libra eval`: a model that nobody named, measured by one command or refused with what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from infra.guard_catalogue import GUARDS  # noqa: E402
from infra.servers.services import services  # noqa: E402
from infra.settings import Settings  # noqa: E402
from tests.support.checkpoints import small_tokenizer, write_checkpoint, write_model  # noqa: E402
from tests.support.cli import Cli  # noqa: E402
from tests.support.families import write_classifier, write_family  # noqa: E402
from tests.support.openai_server import serving_tiny  # noqa: E402
from tests.support.planted import changed  # noqa: E402
from worker.guards.registry import BUNDLED  # noqa: E402

ROWS = 24


@pytest.fixture(scope="module")
def libra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("home")
    rows = [
        {"id": str(at), "response": f"文本 {at}", "label": ("安全", "不安全")[at % 2], "source": "s"}
        for at in range(ROWS)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with services(Settings(state_dir=home / "state")):
        yield Cli(home, LIBRA_STATE_DIR=str(home / "state"))


def evaluated(libra: Cli, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it may start two workers, one after the other."""
    process = libra.start(*arguments)
    try:
        shown, said = process.communicate(timeout=250)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, shown, said)


def classifier(folder: Path) -> Path:
    write_classifier(folder, id2label={0: "safe", 1: "unsafe"}, label2id={"safe": 0, "unsafe": 1})
    changed("classifier.bias", lambda _: torch.tensor([-8.0, 8.0]))(folder)
    return folder


def test_a_classifier_nobody_named_is_measured_by_one_command(libra: Cli) -> None:
    folder = classifier(libra.folder / "checkpoint-70")
    done = evaluated(libra, "eval", str(folder), "rows.jsonl", "--devices", "cpu", "--out", "report.json")

    assert done.returncode == 0, done.stderr
    assert "checkpoint-70: asked in the words of: sequence_classifier; it has a classification head" in done.stderr
    assert "preflight: 8 of 8 answers can be read, 4 of 8 are right" in done.stderr
    assert "all of them are unsafe" in done.stderr
    report = json.loads((libra.folder / "report.json").read_text())
    assert (report["spec"]["mode"], report["counts"]["scored"]) == ("classify", ROWS)


def test_a_model_that_answers_nothing_readable_ends_with_7_and_the_reasons(libra: Cli) -> None:
    folder = write_model(write_checkpoint(libra.folder / "model-a", small_tokenizer(whole=["安全", "不安全"])))
    done = evaluated(libra, "eval", str(folder), "rows.jsonl", "--devices", "cpu")

    assert done.returncode == 7, done.stderr
    assert "model-a: asked in the words of: libra; nothing in it names another family" in done.stderr
    assert "none of the first 8 answers of model-a can be read" in done.stderr
    assert "together" in done.stderr, "the reason of an answer"
    assert "--family" in done.stderr
    assert "Accuracy" not in done.stdout


def test_a_guard_is_recognised_by_its_template_and_asked_in_its_words(libra: Cli) -> None:
    folder = write_family(libra.folder / "step-12", GUARDS["llama-guard-3-8b"])
    done = evaluated(libra, "eval", str(folder), "rows.jsonl", "--devices", "cpu", "--limit", "8")

    assert "step-12: asked in the words of: llama_guard (as llama-guard-3-8b); by its chat template" in done.stderr
    assert done.returncode in (0, 7), done.stderr  # a random model, whose answers may be readable or not


@pytest.mark.parametrize(
    ("spoil", "says", "code"),
    [
        (lambda folder: (folder / "config.json").unlink(), "lacks config.json", 5),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"), "git-LFS", 5),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused_before_anything_starts(
    libra: Cli, spoil: object, says: str, code: int, tmp_path: Path
) -> None:
    folder = classifier(tmp_path / "broken")
    spoil(folder)  # type: ignore[operator]
    done = evaluated(libra, "eval", str(folder), "rows.jsonl", "--devices", "cpu")

    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "starting a worker" not in done.stderr
    assert done.stderr.count("broken") < 6, "said once"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense", "rows.jsonl"), "no model 'nonsense'"),
        (("libra-tiyn", "rows.jsonl"), "did you mean libra-tiny"),
        (("fake", "--family", "qwen9guard"), "no family and no guard"),
        (("chillguard-8b",), "cannot be run"),
        (("fake", "fake"), "named twice"),
    ],
)
def test_what_names_no_model_is_refused_with_what_there_is(libra: Cli, arguments: tuple[str, ...], says: str) -> None:
    done = evaluated(libra, "eval", *arguments, "--devices", "cpu")

    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_several_models_end_on_one_page(libra: Cli) -> None:
    folder = classifier(libra.folder / "other" / "checkpoint-70")
    done = evaluated(
        libra,
        *(
            "eval",
            "libra-tiny",
            str(folder),
            "rows.jsonl",
            "--devices",
            "cpu",
            "--html",
            "board.html",
            "--out",
            "r.json",
        ),
    )

    assert done.returncode == 0, done.stderr
    assert "checkpoint-70" in done.stdout
    assert "compared with" in done.stdout
    page = (libra.folder / "board.html").read_text(encoding="utf-8")
    assert "libra-tiny" in page
    assert "checkpoint-70" in page
    assert sorted(path.name for path in libra.folder.glob("r-*.json")) == ["r-checkpoint-70.json", "r-libra-tiny.json"]


def test_a_server_is_measured_by_its_address(libra: Cli, tmp_path: Path) -> None:
    here = shutil.copytree(BUNDLED["libra-tiny"], tmp_path / "words", ignore=shutil.ignore_patterns("*.safetensors"))
    with serving_tiny(BUNDLED["libra-tiny"]) as tiny:
        refused = evaluated(libra, "eval", tiny.url, "rows.jsonl")
        done = evaluated(libra, "eval", tiny.url, "rows.jsonl", "--tokenizer", str(here), "--limit", "8")

    assert refused.returncode == 2
    assert "--tokenizer" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert "preflight: 8 of 8 answers can be read" in done.stderr


def test_a_server_that_is_away_is_said_in_a_line(libra: Cli) -> None:
    done = evaluated(libra, "eval", "http://127.0.0.1:9", "rows.jsonl")

    assert done.returncode == 4
    assert "http://127.0.0.1:9/v1/models: no list of models" in done.stderr


def test_an_adapter_is_measured_on_its_base(libra: Cli, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = write_model(write_checkpoint(tmp_path / "base", small_tokenizer(whole=["安全", "不安全"])))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    done = evaluated(libra, "eval", f"{base}+{tmp_path / 'lora'}", "rows.jsonl", "--devices", "cpu")
    again = evaluated(libra, "eval", str(tmp_path / "lora"), "rows.jsonl", "--devices", "cpu")

    assert "none of the first 8 answers of lora can be read" in done.stderr, done.stderr
    assert done.returncode == again.returncode == 7, again.stderr
    assert "lora: asked in the words of: libra" in again.stderr


def test_a_run_of_which_nothing_can_be_read_ends_with_7_and_its_reasons(libra: Cli) -> None:
    rows = [{"id": str(at), "response": f"[[fake:unparseable]] {at}", "label": "safe"} for at in range(9)]
    (libra.folder / "unreadable.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = evaluated(libra, "run", "start", "unreadable.jsonl", "--guard", "fake", "--out", "unreadable.json")

    assert done.returncode == 7
    assert "none of 9 answers of fake could be read" in done.stderr
    assert "9 unparseable:" in done.stdout
    assert sum(json.loads((libra.folder / "unreadable.json").read_text())["unparseable_reasons"].values()) == 9


def test_who_only_watches_a_run_of_which_nothing_can_be_read_does_not_end_it(libra: Cli) -> None:
    rows = [{"id": str(at), "response": f"[[fake:unparseable]] {at}", "label": "safe"} for at in range(8_000)]
    (libra.folder / "watched.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated(libra, "run", "submit", "watched.jsonl", "--guard", "fake", "--name", "watched")

    evaluated(libra, "run", "watch", "watched")

    assert libra.json("run", "show", "watched")["state"] == "complete"


def test_a_long_run_of_which_nothing_can_be_read_is_stopped_early(libra: Cli) -> None:
    rows = [{"id": str(at), "response": f"[[fake:unparseable]] {at}", "label": "safe"} for at in range(60_000)]
    (libra.folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = evaluated(libra, "run", "start", "long.jsonl", "--guard", "fake", "--name", "long")

    assert done.returncode == 7
    assert "answers of fake could be read" in done.stderr
    assert libra.json("run", "show", "long")["state"] == "cancelled"
