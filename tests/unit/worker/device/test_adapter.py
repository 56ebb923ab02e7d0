"""BASE+ADAPTER: an adapter that peft wrote is merged into its base and is in the fingerprint; any other is refused."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM  # noqa: E402

from infra.errors import GuardError  # noqa: E402
from libra_fleet.doctor import Level  # noqa: E402
from libra_fleet.doctor.machine import check_checkpoint  # noqa: E402
from schemas.guards import Mode  # noqa: E402
from tests.support.checkpoints import small_tokenizer, write_checkpoint, write_model  # noqa: E402
from tests.support.planted import HTML, configured  # noqa: E402
from worker.consumer.app import fingerprints_of  # noqa: E402
from worker.device.__main__ import load_engine  # noqa: E402
from worker.device.engines.base import Engine  # noqa: E402
from worker.device.engines.transformers import TransformersEngine  # noqa: E402
from worker.device.spec import DeviceSpec, ServerSpec  # noqa: E402
from worker.guards.registry import load_guard  # noqa: E402

PROMPTS, LABELS = [array("i", [5, 6, 7, 8]), array("i", [9, 10])], ((1,), (2,))
WEIGHTS = "adapter_model.safetensors"


class Pair(NamedTuple):
    base: Path
    adapter: Path

    @property
    def location(self) -> str:
        return f"{self.base}+{self.adapter}"


def write_adapter(base: Path, folder: Path, *, trained: bool = True, **options: Any) -> Path:
    """An adapter in peft's own words, as its save_pretrained writes it, with numbers a training could have left."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **options})
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if trained and "lora_B" in name:
                weight.normal_(0, 0.3)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    home = tmp_path_factory.mktemp("adapters")
    base = write_model(write_checkpoint(home / "base", small_tokenizer(whole=["安全", "不安全"])))
    return Pair(base, write_adapter(base, home / "adapter"))


@pytest.fixture
def copied(sound: Pair, tmp_path: Path) -> Pair:
    return Pair(shutil.copytree(sound.base, tmp_path / "base"), shutil.copytree(sound.adapter, tmp_path / "adapter"))


def loaded(location: str, folder: Path, **options: Any) -> Engine:
    paths = {"socket_path": folder / "s", "heartbeat_path": folder / "h"}
    spec = DeviceSpec(guard="mine", location=location, modes=(Mode.SCORE,), dtype="float32", **paths, **options)
    return load_engine(spec)


def errors_of_the_doctor(location: str) -> list[str]:
    return [found.what for found in check_checkpoint("mine", location) if found.level is Level.ERROR]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head", "q_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}, "layers_to_transform": [1]},
    ],
)
def test_the_merged_model_answers_as_peft_does(sound: Pair, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = write_adapter(sound.base, tmp_path / "adapter", **options)
    engine = loaded(f"{sound.base}+{adapter}", tmp_path)
    base = AutoModelForCausalLM.from_pretrained(sound.base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    for prompt, row in zip(PROMPTS, engine.score(PROMPTS, LABELS), strict=True):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([list(prompt)])).logits[0, -1].log_softmax(-1)
        assert row == pytest.approx([logits[1].item(), logits[2].item()], abs=1e-4)
    assert engine.score(PROMPTS, LABELS) != TransformersEngine(sound.base, dtype="float32").score(PROMPTS, LABELS)


def test_the_adapters_every_byte_is_in_the_fingerprint(copied: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    guard = load_guard("mine", copied.location)
    assert guard.model == "base+adapter"

    def digest() -> str:
        info = loaded(copied.location, tmp_path).info
        assert info.adapter
        return fingerprints_of(guard, info)[Mode.SCORE].digest

    before = digest()
    tensors = load_file(copied.adapter / WEIGHTS)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key][-1, -1] += 1
    save_file(tensors, copied.adapter / WEIGHTS, metadata={"format": "pt"})
    assert digest() != before
    assert loaded(str(copied.base), tmp_path).info.adapter == ""
    assert errors_of_the_doctor(copied.location) == []


def in_config(**fields: Any) -> Callable[[Pair], None]:
    def plant(pair: Pair) -> None:
        path = pair.adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return plant


def in_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Pair], None]:
    def plant(pair: Pair) -> None:
        from safetensors.torch import load_file, save_file

        tensors = {key: value.clone().contiguous() for key, value in change(load_file(pair.adapter / WEIGHTS)).items()}
        save_file(tensors, pair.adapter / WEIGHTS, metadata={"format": "pt"})

    return plant


def fewer_layers(pair: Pair) -> None:
    shutil.rmtree(pair.base)
    tokenizer = small_tokenizer(whole=["安全", "不安全"])
    write_model(write_checkpoint(pair.base, tokenizer))
    from tests.support.checkpoints import small_config

    config = small_config(tokenizer, 1_024, num_key_value_heads=2, num_hidden_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(pair.base)


def renamed_to_bin(pair: Pair) -> None:
    (pair.adapter / WEIGHTS).rename(pair.adapter / "adapter_model.bin")


def with_another_template(pair: Pair) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair.base / name, pair.adapter / name)
    template = (pair.base / "chat_template.jinja").read_text()
    (pair.adapter / "chat_template.jinja").write_text(template.replace("You are a helpful assistant.", "Be a judge."))


def with_another_tokenizer(pair: Pair) -> None:
    small_tokenizer(added=["<a>"]).save(str(pair.adapter / "tokenizer.json"))


WRONG: dict[str, tuple[Callable[[Pair], object], str]] = {
    "no config": (
        lambda p: (p.adapter / "adapter_config.json").unlink(),
        "is no adapter: it has no adapter_config.json",
    ),
    "no weights": (lambda p: (p.adapter / WEIGHTS).unlink(), r"lacks adapter_model\.safetensors; download it too"),
    ".bin only": (renamed_to_bin, "it has adapter_model.bin, which is not read"),
    "a pointer": (lambda p: (p.adapter / WEIGHTS).write_bytes(HTML), "is a web page"),
    "cut off": (
        lambda p: (p.adapter / WEIGHTS).write_bytes((p.adapter / WEIGHTS).read_bytes()[:900]),
        "download it again",
    ),
    "prompt tuning": (in_config(peft_type="PROMPT_TUNING"), "an adapter of type PROMPT_TUNING"),
    "for classes": (in_config(task_type="SEQ_CLS"), "an adapter for SEQ_CLS, and its base is run as CAUSAL_LM"),
    "a training that changed the base": (
        in_config(init_lora_weights="pissa"),
        r"its training \(pissa\) changed the base",
    ),
    "for other modules": (in_config(target_modules=["wqkv"]), "does not fit .*wqkv"),
    "of another rank": (in_config(r=8), r"does not fit .* is 4 x 32, and the base takes 8 x 32"),
    "a tensor less": (in_tensors(lambda t: dict(list(t.items())[1:])), "does not fit .*: it lacks base_model"),
    "a tensor more": (in_tensors(lambda t: t | {"base_model.model.x": torch.ones(1)}), "it holds base_model.model.x"),
    "a wrapper's keys": (
        in_tensors(lambda t: {f"module.{key}": value for key, value in t.items()}),
        "is not named as peft names it in a file",
    ),
    "keys of a running model": (
        in_tensors(lambda t: {key.replace(".weight", ".default.weight"): value for key, value in t.items()}),
        "is not named as peft names it in a file",
    ),
    "a base of fewer layers": (fewer_layers, "does not fit .*: it holds .*name the base that it was trained on"),
    "a base of another width": (
        in_tensors(lambda t: {k: v[:, :16] if "lora_A" in k else v for k, v in t.items()}),
        "is 4 x 16, and the base takes 4 x 32",
    ),
    "untrained": (in_tensors(lambda t: {k: v * ("lora_A" in k) for k, v in t.items()}), "changes nothing"),
    "NaN": (in_tensors(lambda t: {k: v * float("nan") for k, v in t.items()}), "NaN|nan"),
    "another chat template": (with_another_template, "another chat template than its base"),
    "another tokenizer": (with_another_tokenizer, "another tokenizer than its base"),
    "a quantised base": (
        lambda p: configured(quantization_config={"quant_method": "fp8"})(p.base),
        "is quantised, and merging .* would round them",
    ),
}
ONLY_LOADED = {"untrained", "NaN"}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_adapter_of_this_base_is_refused_in_a_sentence(copied: Pair, tmp_path: Path, fault: str) -> None:
    plant, says = WRONG[fault]
    plant(copied)
    with pytest.raises(GuardError, match=says) as refusal:
        loaded(copied.location, tmp_path)
    assert "\n" not in str(refusal.value)
    assert (errors_of_the_doctor(copied.location) == []) == (fault in ONLY_LOADED)


def test_a_part_that_is_not_there_is_named(sound: Pair, tmp_path: Path) -> None:
    for location, says in (
        (f"{sound.base}+{tmp_path}/gone", "/gone.*, behind the .*neither an adapter's folder nor a hub id"),
        (f"{tmp_path}/gone+{sound.adapter}", "/gone' is neither a folder nor a hub id"),
        (f"{sound.base}+", "behind the"),
        (str(sound.adapter), r"name both as BASE\+ADAPTER"),
        (f"{sound.adapter}+{sound.adapter}", "adapter without its base"),
    ):
        with pytest.raises(GuardError, match=says):
            loaded(location, tmp_path)
        assert errors_of_the_doctor(location)


def test_a_folder_whose_name_has_a_plus_is_a_folder(sound: Pair, tmp_path: Path) -> None:
    base = shutil.copytree(sound.base, tmp_path / "c+b+a")
    adapter = shutil.copytree(sound.adapter, tmp_path / "a+b")
    assert loaded(str(base), tmp_path).info.adapter == ""
    assert loaded(f"{base}+{adapter}", tmp_path).info.adapter


def test_a_server_merges_its_adapters_itself(sound: Pair, tmp_path: Path) -> None:
    server = ServerSpec(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(GuardError, match="name the base alone here, and the server's name for the adapter"):
        loaded(sound.location, tmp_path, engine="openai", server=server)
