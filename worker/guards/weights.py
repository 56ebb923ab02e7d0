"""A checkpoint's weights as its files describe them: safetensors headers, index and config.json. Torch-free.

It knows nothing of models: whether the weights fit the one of config.json is worker/device/engines/fit.py's question.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from infra.errors import GuardError
from worker.guards.checkpoint import impostor, read_json

ONE_FILE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

_FLOATS: Final = frozenset({"F16", "BF16", "F32", "F64"})
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_LONGEST_HEADER: Final = 100 << 20
_DTYPES: Final = frozenset({"float32", "float16", "bfloat16", "float64", "float", "half", "double", "auto"})
_PACKAGES: Final = {
    "aqlm": ("aqlm",), "auto-round": ("auto_round",), "awq": ("gptqmodel",), "bitnet": (),
    "bitsandbytes": ("bitsandbytes",), "compressed-tensors": ("compressed_tensors",), "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm_gpu",), "fouroversix": ("fouroversix",), "fp8": (), "fp_quant": ("fp_quant",), "gemma": (),
    "gptq": ("gptqmodel", "optimum"), "higgs": ("flute",), "hqq": ("hqq",), "metal": ("kernels",), "mxfp4": (),
    "mxfp8": (), "nvfp4": (), "quanto": ("optimum.quanto",), "quark": ("quark",), "sinq": ("sinq",),
    "spqr": ("spqr_quant",), "torchao": ("torchao",), "vptq": ("vptq",),
}  # fmt: skip
"""What loads each quantised format, by its import name; nothing more where transformers does."""
_OTHER_HEADS: Final = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering")
CLASSIFIERS: Final = ("ForSequenceClassification", "ForGuardModel")
"""Ends of the architectures that have a classification head to be read here."""
_FRAGMENT: Final = re.compile(r"model-\d+-of-\d+\.safetensors")
_PADDING_SHARE: Final = 1.1
_PADDING_ROWS: Final = 512
"""More embeddings than ids by this share and number are room that a model keeps free."""


class Tensor(NamedTuple):
    """One tensor as a header describes it: safetensors' name of its type, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """The files that are loaded, and what their headers say they hold, by key."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]

    @property
    def parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def read_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder, from their headers alone.

    Raises:
        GuardError: a file is missing, cut off or none of this kind, or files contradict each other or config.json.
    """
    files, named = _files(folder)
    tensors: dict[str, Tensor] = {}
    where: dict[str, str] = {}
    for file in files:
        for key, tensor in read_header(file).items():
            if key in tensors:
                raise GuardError(
                    f"{folder}: {key} is both in {where[key]} and in {file.name}; one of them is a rest of another "
                    "checkpoint: download the checkpoint again into an empty folder"
                )
            tensors[key], where[key] = tensor, file.name
    strayed = [key for key, file in named.items() if where.get(key) != file]
    if strayed:
        found = where.get(strayed[0])
        raise GuardError(
            f"{folder}: {INDEX} names {_first(strayed)} in {named[strayed[0]]}, which "
            f"{f'lies in {found}' if found else 'is in no file'}; index and shards are of different checkpoints: "
            "download them again together"
        )
    if not tensors:
        raise GuardError(f"{folder}: its safetensors hold no tensor at all; save the checkpoint again")
    return Weights(tuple(files), tensors)


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that are loaded, as transformers chooses them, and what the index says of each key."""
    single, index = folder / ONE_FILE, folder / INDEX
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    has_single = single.exists() or single.is_symlink()  # what a broken link names is said when it is read
    if has_single and index.exists():
        raise GuardError(
            f"{folder} holds both {ONE_FILE} and {INDEX}, so it is unclear which weights are meant; "
            "remove those of the older checkpoint"
        )
    if has_single:
        return [single], {}
    if not index.exists():
        if any(map(_FRAGMENT.fullmatch, found)):
            raise GuardError(f"{folder} has {_first(found)} but no {INDEX}; download that file too")
        raise GuardError(
            f"{folder} holds no {ONE_FILE}"
            + (f", only {_first(found)}; name the file that holds the model {ONE_FILE}" if found else "")
        )
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise GuardError(f"{index} has no weight_map from keys to files; download it again")
    shards = sorted(set(named.values()))
    if missing := [shard for shard in shards if not (folder / shard).exists() or Path(shard).name != shard]:
        raise GuardError(f"{folder} lacks {_first(missing)} of its index; download what is missing (hf download)")
    return [folder / shard for shard in shards], named


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file: an unsigned 64-bit length, JSON of that length, then the data.

    Raises:
        GuardError: it is no such file, was cut off, or its header contradicts itself.
    """
    text, size = _header_text(path)
    try:
        header = json.loads(text, object_pairs_hook=_without_repetition)
        entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        tensors = {key: Tensor(entry["dtype"], tuple(entry["shape"])) for key, entry in entries.items()}
        spans = {key: (int(entry["data_offsets"][0]), int(entry["data_offsets"][1])) for key, entry in entries.items()}
    except _RepeatedError as error:
        raise GuardError(f"{path} holds the key {error} twice; save the checkpoint again") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise GuardError(f"the header of {path} cannot be read; download it again") from error
    whole = 8 + len(text) + max((end for _, end in spans.values()), default=0)
    if whole != size:
        raise GuardError(f"{path} has {size:,} bytes, its header says {whole:,}; download it again")
    for key, tensor in tensors.items():
        _check_span(path, key, tensor, *spans[key])
    in_order = sorted(span for span in spans.values() if span[0] < span[1])
    if any(end != begin for (_, end), (begin, _) in pairwise([(0, 0), *in_order])):
        raise GuardError(f"{path}: its tensors overlap or leave gaps; download it again")
    return tensors


def _header_text(path: Path) -> tuple[bytes, int]:
    """The header as it stands, and the size of the whole file."""
    if what := impostor(path):
        raise GuardError(f"{path} {what}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise GuardError(f"{path} is no safetensors file, or was cut off; download it again")
        return file.read(length), size


def _check_span(path: Path, key: str, tensor: Tensor, begin: int, end: int) -> None:
    if tensor.dtype not in _BITS:
        raise GuardError(f"{path}: {key} is of type {tensor.dtype}, which is none that is known; save it as BF16")
    if (end - begin) * 8 != math.prod(tensor.shape) * _BITS[tensor.dtype]:
        raise GuardError(f"{path}: {key} takes {end - begin:,} bytes, not those of {_shown(tensor)}; download it again")


class _RepeatedError(Exception):
    """A key that stands twice in an object."""


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedError(key)
        found[key] = value
    return found


def check_config(folder: Path, weights: Weights, *, classifies: bool) -> None:
    """See that config.json describes a model of the kind that is asked for, in types that can be loaded here.

    Raises:
        GuardError: it does not.
    """
    config = read_json(folder / "config.json")
    named = config.get("dtype", config.get("torch_dtype"))
    if named is not None and str(named).removeprefix("torch.") not in _DTYPES:
        raise GuardError(f"{folder}/config.json names the dtype {named!r}, which is none; write bfloat16 or float32")
    _check_head(folder, config, classifies=classifies)
    quantised = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if quantised:
        _check_packages(folder, quantised)
        return
    packed = [key for key, tensor in weights.tensors.items() if _is_weight(key) and tensor.dtype not in _FLOATS]
    if packed:
        raise GuardError(
            f"{folder}: {_first(packed)} {'is' if len(packed) == 1 else 'are'} {weights.tensors[packed[0]].dtype}, and "
            "config.json has no quantization_config that says what the numbers mean; take the config.json that belongs "
            "to these weights, or the weights in BF16"
        )


def _is_weight(key: str) -> bool:
    return key.endswith((".weight", ".bias", "qweight", "_blocks"))


def _check_head(folder: Path, config: dict[str, Any], *, classifies: bool) -> None:
    architectures = [str(name) for name in config.get("architectures") or []]
    other = [name for name in architectures if name.endswith((*_OTHER_HEADS, *CLASSIFIERS))]
    if not classifies and other:
        raise GuardError(
            f"{folder}/config.json says {other[0]}, and this guard is asked for text; "
            "run a classifier under a name of its own (--guard NAME=FOLDER), or name the folder of a generative model"
        )
    if not classifies:
        return
    if architectures and not any(name.endswith(CLASSIFIERS) for name in architectures):
        raise GuardError(
            f"{folder}/config.json says {architectures[0]}, which has no classification head; "
            "name the folder of the fine-tuned classifier, not of its base"
        )
    names, count = config.get("id2label"), config.get("num_labels")
    if isinstance(names, dict) and isinstance(count, int) and count != len(names):
        raise GuardError(f"{folder}/config.json: num_labels is {count}, id2label names {len(names)}; correct it")
    numbers = config.get("label2id")
    if isinstance(names, dict) and isinstance(numbers, dict):
        swapped = [name for at, name in names.items() if name in numbers and str(numbers[name]) != str(at)]
        if swapped:
            raise GuardError(
                f"{folder}/config.json: id2label and label2id number the class {swapped[0]!r} differently, so it is "
                "unclear which output means it; correct the wrong one"
            )


def _check_packages(folder: Path, quantised: Any) -> None:  # noqa: ANN401 - whatever config.json says
    facts = quantised if isinstance(quantised, dict) else {}
    old = "bitsandbytes" if facts.get("load_in_4bit") or facts.get("load_in_8bit") else ""  # it once named no method
    method = str(facts.get("quant_method") or old)
    if method not in _PACKAGES:
        raise GuardError(
            f"{folder}/config.json names the quantised format {method or 'of no name'!r}, which is not known here; "
            "take the weights in BF16"
        )
    missing = [name for name in _PACKAGES[method] if not _installed(name)]
    if missing:
        commands = " ".join(name.replace(".", "-").replace("_", "-") for name in missing)
        raise GuardError(
            f"{folder} is quantised ({method}), which needs a package that is not installed: pip install {commands}, "
            "or take the weights in BF16"
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def check_vocabulary(folder: Path, rows: int, tokenizer_size: int) -> None:
    """See that a tokenizer of this many ids (the highest + 1) belongs to this many embeddings.

    Raises:
        GuardError: ids have no embedding, or far more embeddings than ids show that the tokenizer is another model's.
    """
    if tokenizer_size > rows:
        raise GuardError(
            f"{folder}: its tokenizer has {tokenizer_size:,} ids and its model {rows:,} embeddings; take the tokenizer "
            "that the model was trained with, or resize the embeddings and train them"
        )
    if rows > _PADDING_SHARE * tokenizer_size + _PADDING_ROWS:
        raise GuardError(
            f"{folder}: its model has {rows:,} embeddings and its tokenizer {tokenizer_size:,} ids only, so it is "
            "another model's; take the tokenizer that the model was trained with"
        )


def _shown(tensor: Tensor) -> str:
    return f"{' x '.join(map(str, tensor.shape)) or 'one number'} of {tensor.dtype}"


def _first(names: Iterable[str]) -> str:
    """The first three of them, and how many there are."""
    known = list(names)
    more = f" and {len(known) - 3:,} more" if len(known) > 3 else ""
    return ", ".join(known[:3]) + more
