"""A checkpoint that is not what it says is refused before it judges anything, in one sentence that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from infra.errors import GuardError  # noqa: E402
from libra_fleet.doctor import Level  # noqa: E402
from libra_fleet.doctor.machine import check_checkpoint  # noqa: E402
from schemas.guards import Mode  # noqa: E402
from tests.support.checkpoints import small_tokenizer, write_checkpoint, write_model  # noqa: E402
from tests.support.families import write_classifier  # noqa: E402
from tests.support.planted import (  # noqa: E402
    CLASSIFIER,
    EMBEDDINGS,
    GENERATIVE,
    HEAD,
    Planted,
    changed,
    configured,
    renamed,
    rewrite,
    sharded,
    without,
)
from worker.device.__main__ import load_engine  # noqa: E402
from worker.device.engines.base import Engine  # noqa: E402
from worker.device.engines.fit import check_fit  # noqa: E402
from worker.device.spec import DeviceSpec  # noqa: E402


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(write_checkpoint(tmp_path_factory.mktemp("sound"), small_tokenizer(whole=["安全", "不安全"])))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"id2label": {0: "safe", 1: "offensive"}, "label2id": {"safe": 0, "offensive": 1}}
    return write_classifier(tmp_path_factory.mktemp("classifier"), **names)


def loaded(folder: Path) -> Engine:
    paths = {"socket_path": folder / "s", "heartbeat_path": folder / "h"}
    return load_engine(DeviceSpec(guard="mine", location=str(folder), modes=(Mode.SCORE,), dtype="float32", **paths))


def errors_of_the_doctor(folder: Path) -> list[str]:
    return [found.what for found in check_checkpoint("mine", str(folder)) if found.level is not Level.GOOD]


def check(folder: Path, fault: Planted, source: Path) -> None:
    shutil.copytree(source, folder)
    fault.plant(folder)
    with pytest.raises(GuardError, match=fault.says) as refusal:
        loaded(folder)
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 500
    found = errors_of_the_doctor(folder)
    assert (found == []) if fault.only_loaded else re.search(fault.says, " ".join(found))


@pytest.mark.parametrize("name", GENERATIVE)
def test_a_generative_checkpoint_that_does_not_fit_is_refused(name: str, sound: Path, tmp_path: Path) -> None:
    check(tmp_path / "spoilt", GENERATIVE[name], sound)


@pytest.mark.parametrize("name", CLASSIFIER)
def test_a_classifier_that_does_not_fit_is_refused(name: str, classifier: Path, tmp_path: Path) -> None:
    check(tmp_path / "spoilt", CLASSIFIER[name], classifier)


def tied(folder: Path) -> None:
    configured(tie_word_embeddings=True)(folder)
    without(HEAD)(folder)


HARMLESS: dict[str, Any] = {
    "as it is": lambda _: None,
    "tied embeddings without a head of their own": tied,
    "tied embeddings that were saved twice": lambda folder: (
        configured(tie_word_embeddings=True)(folder),
        rewrite(lambda tensors: {**tensors, HEAD: tensors[EMBEDDINGS]})(folder),
    ),
    "shards": sharded,
    "half precision": rewrite(lambda tensors: {key: value.bfloat16() for key, value in tensors.items()}),
    "keys of the model without its head's prefix": renamed(lambda key: key.removeprefix("model.")),
    "older buffers": rewrite(
        lambda tensors: {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    ),
    "a table of one zero row": changed("model.layers.0.self_attn.q_proj.bias", torch.zeros_like),
    "another guard's file beside it": lambda folder: (folder / "consolidated.safetensors").write_bytes(b"abc"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_unusual_is_loaded(name: str, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "unusual")
    HARMLESS[name](tmp_path / "unusual")
    assert loaded(tmp_path / "unusual").info.engine == "transformers"
    assert errors_of_the_doctor(tmp_path / "unusual") == []


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "grown")
    tokenizer = small_tokenizer(whole=["安全", "不安全"], added=["<a>", "<b>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(GuardError, match=r"its tokenizer has \d+ ids and its model \d+ embeddings"):
        loaded(folder)
    assert "embeddings" in errors_of_the_doctor(folder)[0]


def test_a_tokenizer_of_a_far_smaller_model_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "other")
    rewrite(lambda t: {k: torch.cat([v, v, v, v]) if k in (EMBEDDINGS, HEAD) else v for k, v in t.items()})(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    configured(vocab_size=4 * rows)(folder)
    with pytest.raises(GuardError, match="another model's"):
        loaded(folder)


def test_a_classifier_is_not_asked_for_text_nor_a_generator_for_classes(sound: Path, classifier: Path) -> None:
    with pytest.raises(GuardError, match="BertForSequenceClassification, and this guard is asked for text"):
        check_fit(classifier, classifies=False)
    with pytest.raises(GuardError, match="Qwen2ForCausalLM, which has no classification head"):
        check_fit(sound, classifies=True)


def test_a_file_is_no_folder(sound: Path) -> None:
    with pytest.raises(GuardError, match="is a file; name the folder"):
        loaded(sound / "model.safetensors")


def test_the_folder_around_a_checkpoint_is_refused_with_the_one_that_is_meant(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "checkpoint-500")
    with pytest.raises(GuardError, match=r"did you mean .*checkpoint-500\?"):
        loaded(tmp_path)


def test_a_folder_that_is_written_while_it_loads_is_refused(sound: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = shutil.copytree(sound, tmp_path / "busy")
    from worker.device.engines import loading

    before = loading.check_values
    monkeypatch.setattr(
        loading, "check_values", lambda *given: (before(*given), changed(HEAD, lambda t: t + 1)(folder))
    )
    with pytest.raises(GuardError, match="changed while it was loaded"):
        loaded(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_overwriting_a_running_models_file_does_not_change_it(sound: Path, tmp_path: Path, dtype: Any) -> None:
    from array import array

    from worker.device.engines.transformers import TransformersEngine

    folder = shutil.copytree(sound, tmp_path / "running")
    rewrite(lambda tensors: {k: v.to(getattr(torch, dtype)) for k, v in tensors.items()})(folder)
    engine = TransformersEngine(folder, dtype=dtype)
    prompts, labels = [array("i", [5, 6, 7])], ((1,), (2,))
    before = engine.score(prompts, labels)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(size // 4)
        file.write(bytes(size - size // 4))
    assert engine.score(prompts, labels) == before
