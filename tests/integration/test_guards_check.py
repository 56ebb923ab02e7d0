"""`libra guards check`: a checkpoint that answers as its family should passes; each planted wrong one is found out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

torch = pytest.importorskip("torch")

from infra.guard_catalogue import GUARDS  # noqa: E402
from tests.support import taught  # noqa: E402
from tests.support.checkpoints import CHATML_TOKENS, write_checkpoint, write_model  # noqa: E402
from tests.support.cli import Cli  # noqa: E402
from tests.support.families import write_classifier, write_family  # noqa: E402
from tests.support.planted import GENERATIVE, changed  # noqa: E402
from tests.support.taught import NAME, write_taught  # noqa: E402


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    home = tmp_path_factory.mktemp("check")
    return Cli(home, LIBRA_STATE_DIR=str(home / "state"))


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught(tmp_path_factory.mktemp("fitting") / "guard")


def check(cli: Cli, name: str, folder: Path | str | None = None) -> tuple[int, dict[str, Any]]:
    place = ("--checkpoint", str(folder)) if folder else ()
    done = cli("guards", "check", name, *place, "--devices", "cpu", "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(facts: dict[str, Any]) -> set[str]:
    return {finding["name"] for finding in facts["findings"]}


def test_a_checkpoint_that_fits_is_shown_and_said_to_fit(cli: Cli, fitting: Path) -> None:
    code, facts = check(cli, NAME, fitting)
    assert (code, facts["fits"], facts["findings"]) == (0, True, [])
    kinds = [sample["kind"] for sample in facts["samples"]]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(kinds, 3)
    assert {(count["kind"], count["mode"]) for count in facts["tallies"]} == {
        (kind, mode) for kind in kinds for mode in ("score", "generate")
    }
    for sample in facts["samples"]:
        assert sample["prompts"][0].startswith("<|im_start|>")
        assert [piece for _, piece in sample["before_label"]][-1] == "\n"
        assert [[piece for _, piece in label] for label in sample["labels"]] == [["safe"], ["unsafe"]]
        assert sample["written"][0][1] == sample["label"], "the model writes the label where it is read"
        assert sample["written"][0][0] in {label[0][0] for label in sample["labels"]}


def test_a_person_reads_prompts_ids_and_the_verdict_in_the_last_line(cli: Cli, fitting: Path) -> None:
    done = cli("guards", "check", f"{NAME}={fitting}", "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith(f"{NAME}: this checkpoint answers as its family should")
    assert "ids before the label" in done.stdout
    assert "外地人" in done.stdout
    assert "label mass" in done.stdout


def test_the_bundled_guard_passes(cli: Cli) -> None:
    code, facts = check(cli, "libra-tiny")
    assert (code, facts["findings"]) == (0, [])


WRONG: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "always safe": (taught.always_safe, {"one-label"}),
    "exchanged labels": (taught.exchange_labels, {"swapped"}),
    "other words": (taught.other_words, {"low-mass", "unread"}),
    "a label that is never written": (taught.never_write_unsafe, {"one-label", "split"}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_checkpoint_that_answers_otherwise_is_found_out(cli: Cli, fitting: Path, tmp_path: Path, fault: str) -> None:
    plant, names = WRONG[fault]
    folder = shutil.copytree(fitting, tmp_path / "wrong")
    plant(folder)
    code, facts = check(cli, NAME, folder)
    assert (code, found(facts)) == (5, names)
    assert "does not answer as its family should" in facts["line"]


def test_an_untrained_base_is_found_out(cli: Cli, tmp_path: Path) -> None:
    code, facts = check(cli, NAME, write_family(tmp_path / "base", GUARDS[NAME]))
    assert (code, found(facts)) == (5, {"low-mass", "unread"})


@pytest.mark.parametrize(
    ("name", "other", "what"),
    [
        ("llama-guard-3-8b", "nemotron-safety-guard-8b-v3", "does not say 'Task: Check if there is unsafe content in'"),
        ("shieldgemma-2b", "nemotron-content-safety-reasoning-4b", "does not say 'You are a policy expert'"),
    ],
)
def test_another_models_chat_template_is_found_out(cli: Cli, tmp_path: Path, name: str, other: str, what: str) -> None:
    folder = write_family(tmp_path / "guard", GUARDS[name])
    theirs = write_family(tmp_path / "other", GUARDS[other], weights=False) / "chat_template.jinja"
    shutil.copy(theirs, folder / "chat_template.jinja")
    code, facts = check(cli, name, folder)
    assert code == 5
    (finding,) = [finding for finding in facts["findings"] if finding["name"] == "template"]
    assert what in finding["what"]


def test_a_tokenizer_without_the_labels_pieces_is_found_out(cli: Cli, tmp_path: Path) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(list(CHATML_TOKENS))
    folder = write_model(write_checkpoint(tmp_path / "bytes", tokenizer), context_tokens=4_096)
    code, facts = check(cli, "mine", folder)
    assert code == 5
    assert "label-pieces" in found(facts)


def test_a_classifier_is_checked_by_its_classes(cli: Cli, tmp_path: Path) -> None:
    folder = write_classifier(
        tmp_path / "classifier", id2label={0: "safe", 1: "offensive"}, label2id={"safe": 0, "offensive": 1}
    )
    changed("classifier.bias", lambda _: torch.tensor([8.0, -8.0]))(folder)
    code, facts = check(cli, "mine", folder)
    assert (code, found(facts)) == (5, {"one-label"})
    assert facts["samples"][0]["written"] is None
    assert {count["mode"] for count in facts["tallies"]} == {"classify"}


@pytest.mark.parametrize("fault", ["no head", "torch.compile", "NaN", ".bin only"])
def test_an_unfit_checkpoint_ends_with_5_as_for_a_worker(cli: Cli, fitting: Path, tmp_path: Path, fault: str) -> None:
    planted = GENERATIVE[fault]
    folder = shutil.copytree(fitting, tmp_path / "unfit")
    planted.plant(folder)
    done = cli("guards", "check", NAME, "--checkpoint", str(folder), "--devices", "cpu")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") <= 2, "what is under way, and the one sentence"


def test_what_has_no_labels_is_refused(cli: Cli) -> None:
    for name in ("fake", "generator=some/model"):
        assert cli("guards", "check", name).returncode == 2
    assert cli("guards", "check", "chillguard-8b").returncode == 5
