"""In whose words a checkpoint is asked that no card names, by what it shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from infra.errors import GuardError, UsageError
from infra.guard_catalogue import GUARDS
from schemas.guards import Family, Mode
from tests.support.families import dress_of, write_classifier, write_family
from worker.guards.family import families, words_of
from worker.guards.registry import load_guard
from worker.guards.template_guard import TemplateGuard

BY_TEMPLATE = (
    *("llama-guard-7b", "llama-guard-2-8b", "llama-guard-3-8b", "llama-guard-4-12b", "qwen3guard-gen-8b"),
    *("shieldgemma-2b", "granite-guardian-3.3-8b", "yufeng-xguard-reason-8b", "singguard-4b"),
    "nemotron-3-content-safety",
)


def dressed(folder: Path, name: str, **config: object) -> Path:
    """A folder with a card's chat template, under a name that says nothing."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], **config}))
    (folder / "chat_template.jinja").write_text(dress_of(GUARDS[name]).template or "", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", BY_TEMPLATE)
def test_a_folder_is_recognised_by_its_chat_template(name: str, tmp_path: Path) -> None:
    words = words_of(str(dressed(tmp_path / "checkpoint-900", name)))

    assert (words.family, words.reason) == (GUARDS[name].family, "by its chat template")
    assert words.card
    if words.family is Family.LLAMA_GUARD:
        assert words.card.variant == GUARDS[name].variant
    else:
        assert words.card in [card for card in GUARDS.values() if card.family is words.family]
    assert f"asked in the words of: {words.family.value}" in words.said


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_chat_template_is_found_wherever_it_is(place: str, as_list: bool, tmp_path: Path) -> None:
    folder = dressed(tmp_path / "x", "qwen3guard-gen-8b")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    given = [{"name": "default", "template": template}] if as_list else template
    (folder / place).write_text(json.dumps({"chat_template": given}))

    assert words_of(str(folder)).family is Family.QWEN3GUARD


@pytest.mark.parametrize(
    ("location", "family", "card"),
    [
        ("Qwen/Qwen3Guard-Gen-8B", Family.QWEN3GUARD, "qwen3guard-gen-8b"),
        ("qwen/qwen3guard-gen-8b", Family.QWEN3GUARD, "qwen3guard-gen-8b"),
        ("somebody/Qwen3Guard-Gen-4B-AWQ", Family.QWEN3GUARD, "qwen3guard-gen-4b"),
        ("unsloth/Llama-Guard-3-8B", Family.LLAMA_GUARD, "llama-guard-3-8b"),
        ("me/wildguard-tuned", Family.WILDGUARD, "wildguard"),
        ("me/granite-guardian-3.1-8b-gguf", Family.GRANITE, "granite-guardian-3.1-8b"),
        ("caskcsg/Libra-Guard-Qwen2.5-7B-Instruct", Family.LIBRA, "libra-guard-qwen2.5-7b-instruct"),
        ("me/qwen3guard-stream-8b-ft", Family.QWEN3GUARD_STREAM, "qwen3guard-stream-8b"),
        ("me/llama-guard-3-8b+me/lora", Family.LLAMA_GUARD, "llama-guard-3-8b"),
        ("me/anything-7b", Family.LIBRA, None),
    ],
)
def test_a_hub_id_is_recognised_by_its_name(location: str, family: Family, card: str | None) -> None:
    words = words_of(location)

    assert (words.family, words.card and words.card.name) == (family, card)


def test_a_folder_of_the_hubs_cache_is_known_by_its_hub_id(tmp_path: Path) -> None:
    folder = tmp_path / "models--allenai--wildguard" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)

    assert words_of(str(folder)).family is Family.WILDGUARD


def test_a_classification_head_classifies(tmp_path: Path) -> None:
    words = words_of(
        str(write_classifier(tmp_path / "x", id2label={0: "safe", 1: "bad"}, label2id={"safe": 0, "bad": 1}))
    )

    assert (words.family, words.modes) == (Family.SEQUENCE_CLASSIFIER, (Mode.CLASSIFY,))


def test_what_a_model_was_made_from_speaks_for_it(tmp_path: Path) -> None:
    folder = dressed(tmp_path / "x", "polyguard-qwen", _name_or_path="ToxicityPrompts/PolyGuard-Qwen")

    assert words_of(str(folder)).family is Family.POLYGUARD


def test_a_checkpoint_that_shows_nothing_gets_libras_words_and_says_so(tmp_path: Path) -> None:
    words = words_of(str(dressed(tmp_path / "model-a", "qwen2.5-0.5b-instruct")))

    assert (words.family, words.card) == (Family.LIBRA, None)
    assert "nothing in it names another family" in words.said


def test_a_family_or_a_guard_can_be_named(tmp_path: Path) -> None:
    folder = str(dressed(tmp_path / "x", "llama-guard-2-8b"))

    assert words_of(folder, "qwen3guard").family is Family.QWEN3GUARD
    assert words_of(folder, "llama-guard-3-1b").card == GUARDS["llama-guard-3-1b"]
    named = words_of(folder, "llama_guard")
    assert named.card
    assert named.card.variant == "2", "the version is the one that the template shows"
    assert words_of(folder, "libra").family is Family.LIBRA


@pytest.mark.parametrize("named", ["qwen4guard", "fake", "unknown", "chillguard-8b", ""])
def test_a_family_that_is_none_is_refused_with_those_there_are(named: str) -> None:
    with pytest.raises(UsageError, match="no family and no guard"):
        words_of("me/x", named)
    assert {"libra", "qwen3guard", "llama_guard", "sequence_classifier"} <= set(families())
    assert not {"fake", "unknown"} & set(families())


def test_a_guard_that_cannot_be_run_is_not_run_in_other_words() -> None:
    with pytest.raises(GuardError, match="chillguard-8b cannot be run"):
        words_of("cswbyu/CHILLGuard-8B")


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "chat_template.json"):
        (tmp_path / name).write_text("no json")

    assert words_of(str(tmp_path)).family is Family.LIBRA


def test_a_folder_nobody_named_is_asked_as_its_family_asks(tmp_path: Path) -> None:
    made = write_family(tmp_path / "made", GUARDS["qwen3guard-gen-0.6b"], weights=False)
    mine = shutil.copytree(made, tmp_path / "step-100")
    guard = load_guard("mine", str(mine))
    like = load_guard("qwen3guard-gen-0.6b", str(made))

    assert isinstance(guard, TemplateGuard)
    assert guard.name == "mine"
    assert guard.prompt_digest == like.prompt_digest
    assert load_guard("mine", str(mine), family="libra").prompt_digest != guard.prompt_digest
