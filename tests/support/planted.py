"""Checkpoints that are not what they say: each function spoils a sound folder in one way that people have met."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Planted(NamedTuple):
    """One fault: how it is planted, words of the refusal, and whether only the loaded numbers show it."""

    plant: Callable[[Path], None]
    says: str
    only_loaded: bool = False


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def rewrite(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Plant by changing the tensors."""

    def plant(folder: Path) -> None:
        tensors = {key: value.clone().contiguous() for key, value in change(weights(folder)).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return plant


def renamed(name: Callable[[str], str]) -> Callable[[Path], None]:
    return rewrite(lambda tensors: {name(key): value for key, value in tensors.items()})


def without(*keys: str) -> Callable[[Path], None]:
    return rewrite(lambda tensors: {key: value for key, value in tensors.items() if key not in keys})


def changed(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return rewrite(lambda tensors: {**tensors, key: change(tensors[key])})


def with_value(key: str, value: float) -> Callable[[Path], None]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return changed(key, spoil)


def configured(**fields: Any) -> Callable[[Path], None]:
    """Plant by changing config.json; None removes a field."""

    def plant(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return plant


def replaced(content: bytes, name: str = WEIGHTS) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(content))


def cut_off(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def too_long(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 100)


def header(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Plant by changing the header's text."""

    def plant(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        text = change(whole[8 : 8 + length].decode()).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    return plant


def sharded(folder: Path) -> dict[str, str]:
    """Two shards and a sound index; returns the index's map."""
    tensors = weights(folder)
    (folder / WEIGHTS).unlink()
    keys, named = sorted(tensors), {}
    for number, mine in enumerate((keys[::2], keys[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in mine}, folder / name, metadata={"format": "pt"})
        named |= dict.fromkeys(mine, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return named


def missing_shard(folder: Path) -> None:
    (folder / sorted(set(sharded(folder).values()))[1]).unlink()


def no_index(folder: Path) -> None:
    sharded(folder)
    (folder / INDEX).unlink()


def wrong_shard(folder: Path) -> None:
    named = sharded(folder)
    one, other = sorted(set(named.values()))
    first = next(key for key, file in named.items() if file == one)
    (folder / INDEX).write_text(json.dumps({"weight_map": named | {first: other}}))


def index_of_more(folder: Path) -> None:
    named = sharded(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": named | {"model.layers.9.x.weight": min(named.values())}}))


def twice(folder: Path) -> None:
    named = sharded(folder)
    one, other = sorted(set(named.values()))
    mine, theirs = load_file(folder / one), load_file(folder / other)
    save_file(theirs | {min(mine): mine[min(mine)]}, folder / other, metadata={"format": "pt"})


def two_sets(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    sharded(folder)
    (folder / WEIGHTS).write_bytes(whole)


def bin_only(folder: Path) -> None:
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def slow_tokenizer_only(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def adapter_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/base"}))


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def dangling(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "gone")


def void(_: object) -> None:
    """Forget a result."""


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
HTML = b"<!DOCTYPE html><html><body>not found</body></html>"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"

GENERATIVE: dict[str, Planted] = {
    "torch.compile": Planted(renamed(lambda key: f"_orig_mod.{key}"), r"'_orig_mod\.' \(torch\.compile\)"),
    "torch.compile inside": Planted(renamed(lambda key: key.replace("model.", "model._orig_mod.", 1)), "_orig_mod"),
    "DistributedDataParallel": Planted(renamed(lambda key: f"module.{key}"), r"'module\.' \(Distributed"),
    "peft's wrapper": Planted(renamed(lambda key: f"base_model.model.{key}"), r"'base_model\.model\.' \(peft"),
    "FSDP's wrapper": Planted(renamed(lambda key: f"_fsdp_wrapped_module.{key}"), "FSDP"),
    "a prefix of one's own": Planted(renamed(lambda key: f"student.guard.{key}"), r"'student\.guard\.'"),
    "no head": Planted(without(HEAD), r"lacks lm_head\.weight, which would be random"),
    "no embeddings": Planted(without(EMBEDDINGS), r"lacks model\.embed_tokens\.weight"),
    "one layer missing": Planted(
        rewrite(lambda tensors: {key: value for key, value in tensors.items() if ".layers.1." not in key}),
        r"lacks model\.layers\.1\..* and \d+ more keys",
    ),
    "one tensor missing": Planted(without(QUERY), r"lacks model\.layers\.1\.self_attn\.q_proj\.weight"),
    "one layer too many": Planted(
        rewrite(lambda tensors: tensors | {k.replace("rs.1.", "rs.2."): v for k, v in tensors.items()}),
        r"holds model\.layers\.2\.",
    ),
    "a value head": Planted(rewrite(lambda t: t | {"v_head.weight": torch.ones(1, 32)}), r"holds v_head\.weight"),
    "an adapter that was not merged": Planted(
        rewrite(lambda t: t | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 32)}), "merge"
    ),
    "a head of another shape": Planted(changed(HEAD, lambda t: t[:-1]), r"lm_head\.weight is \d+ x 32 .* by config"),
    "a transposed weight": Planted(
        changed("model.layers.0.mlp.up_proj.weight", lambda t: t.T), r"is 32 x 48 in the file and 48 x 32"
    ),
    "a sharded training's empty weight": Planted(changed(QUERY, lambda t: t.new_empty(0)), r"is 0 in the file"),
    "a vocabulary other than the embeddings'": Planted(configured(vocab_size=640), r"x 32 in the file and 640 x 32"),
    "more layers in the config": Planted(configured(num_hidden_layers=3, layer_types=None), r"lacks model\.layers\.2"),
    "a wider config": Planted(configured(hidden_size=64), "in the file and"),
    "another architecture's config": Planted(
        configured(model_type="llama", architectures=["LlamaForCausalLM"]), r"holds .*\.bias"
    ),
    "an architecture nobody knows": Planted(configured(model_type="qwen99"), "config.json describes no model here"),
    "no model type": Planted(configured(model_type=None), "config.json describes no model here"),
    "a dtype that is none": Planted(configured(dtype="float17"), "float17"),
    "whole numbers without a format": Planted(changed(QUERY, lambda t: t.to(torch.int8)), "no quantization_config"),
    "8-bit floats without a format": Planted(changed(QUERY, lambda t: t.to(torch.float8_e4m3fn)), "no quantization"),
    "gptq without its package": Planted(
        configured(quantization_config={"quant_method": "gptq", "bits": 4}), "pip install gptqmodel optimum"
    ),
    "awq without its package": Planted(
        configured(quantization_config={"quant_method": "awq", "bits": 4}), "pip install gptqmodel"
    ),
    "bitsandbytes without its package": Planted(
        configured(quantization_config={"load_in_4bit": True}), "pip install bitsandbytes"
    ),
    "compressed-tensors without its package": Planted(
        configured(quantization_config={"quant_method": "compressed-tensors"}), "pip install compressed-tensors"
    ),
    "a quantised format nobody knows": Planted(configured(quantization_config={"quant_method": "int3"}), "'int3'"),
    "cut off": Planted(cut_off, r"bytes, its header says"),
    "bytes too many": Planted(too_long, r"bytes, its header says"),
    "cut off in the header": Planted(replaced(struct.pack("<Q", 10_000) + b'{"a":'), "was cut off"),
    "empty": Planted(replaced(b""), "is empty"),
    "a few bytes": Planted(replaced(b"abc"), "is no safetensors file"),
    "zeros": Planted(replaced(bytes(4_096)), "header"),
    "no tensor": Planted(replaced(struct.pack("<Q", 2) + b"{}"), "no tensor at all"),
    "a git-LFS pointer": Planted(replaced(LFS), "git lfs pull"),
    "a web page": Planted(replaced(HTML), "web page"),
    "a server's error": Planted(replaced(b"Entry not found"), "error message of a server"),
    "GGUF": Planted(replaced(b"GGUF\3\0\0\0" + bytes(100)), "GGUF"),
    "a renamed .bin": Planted(replaced(b"PK\3\4" + bytes(100)), "PyTorch"),
    "a renamed pickle": Planted(replaced(b"\x80\x02}q\0" + bytes(100)), "pickle"),
    "gzip": Planted(replaced(b"\x1f\x8b\x08" + bytes(100)), "gunzip"),
    "a link to nothing": Planted(dangling, "link to a file that is gone"),
    "a folder in its place": Planted(
        lambda folder: void(((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir())), "cannot be read"
    ),
    "a type nobody knows": Planted(header(lambda text: text.replace('"F32"', '"F31"', 1)), "F31"),
    "a key twice": Planted(
        header(lambda text: text.replace('"model.norm.weight"', '"lm_head.weight"')), "lm_head.weight twice"
    ),
    "a shape that is not its bytes": Planted(header(lambda text: text.replace("[32]", "[33]", 1)), "not those of 33"),
    "a header that is no JSON": Planted(header(lambda text: "{{" + text[2:]), "cannot be read"),
    "a missing shard": Planted(missing_shard, "of its index"),
    "shards without an index": Planted(no_index, "but no model.safetensors.index.json"),
    "a key in another shard": Planted(wrong_shard, "index and shards are of different checkpoints"),
    "an index of more": Planted(index_of_more, "is in no file"),
    "a key in two shards": Planted(twice, "is both in"),
    "two sets of weights": Planted(two_sets, "holds both"),
    "an index of nothing": Planted(
        lambda folder: void((sharded(folder), (folder / INDEX).write_text("[]"))), "no JSON object"
    ),
    "weights under another name": Planted(
        lambda folder: void((folder / WEIGHTS).rename(folder / "final.safetensors")), "only final.safetensors"
    ),
    ".bin only": Planted(bin_only, r"pytorch_model\.bin.*convert it"),
    "tokenizer.model only": Planted(slow_tokenizer_only, r"tokenizer\.model: write it with"),
    "an adapter alone": Planted(adapter_only, r"BASE\+ADAPTER \(/base\+.*merge it into"),
    "an adapter beside the model": Planted(adapter_beside, "both a model and an adapter"),
    "a config that is a pointer": Planted(replaced(LFS, "config.json"), "git lfs pull"),
    "a tokenizer that is a web page": Planted(replaced(HTML, "tokenizer.json"), "web page"),
    "a template that is a pointer": Planted(replaced(LFS, "chat_template.jinja"), "git lfs pull"),
    "a config that is a list": Planted(replaced(b"[]", "config.json"), "no JSON object"),
    "NaN": Planted(with_value(QUERY, float("nan")), "NaN or infinite", only_loaded=True),
    "an infinite value": Planted(with_value("model.norm.weight", float("inf")), "NaN or infinite", only_loaded=True),
    "a value that bfloat16's range exceeds": Planted(
        changed(QUERY, lambda t: t.double() * 0 + 1e300), "NaN or infinite", only_loaded=True
    ),
    "a head of zeros": Planted(changed(HEAD, torch.zeros_like), "is zero throughout", only_loaded=True),
    "a hole in a download": Planted(
        changed("model.layers.0.mlp.down_proj.weight", torch.zeros_like), "is zero throughout", only_loaded=True
    ),
}
"""Faults of a Qwen2 of two layers, 32 wide, over a tokenizer and template of its own."""

CLASSIFIER: dict[str, Planted] = {
    "no head": Planted(without("classifier.weight", "classifier.bias"), r"lacks classifier\.bias, classifier\.weight"),
    "half a head": Planted(without("classifier.bias"), r"lacks classifier\.bias"),
    "a class more than the head has": Planted(
        configured(id2label={"0": "safe", "1": "bias", "2": "hate"}, label2id=None), r"2 in the file and 3 by"
    ),
    "labels numbered twice, differently": Planted(
        configured(id2label={"0": "safe", "1": "offensive"}, label2id={"safe": 1, "offensive": 0}), "differently"
    ),
    "a number of classes that is not that of their names": Planted(configured(num_labels=3), "num_labels is 3"),
    "a head of zeros": Planted(changed("classifier.weight", torch.zeros_like), "zero throughout", only_loaded=True),
    "DistributedDataParallel": Planted(renamed(lambda key: f"module.{key}"), "DistributedDataParallel"),
}
"""Faults of a BERT with two classes, safe and offensive."""
