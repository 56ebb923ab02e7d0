"""Loading a checkpoint folder with transformers, and torch's errors in the engines' words. Runs nothing."""

from __future__ import annotations

import os
import platform
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM

from infra.errors import GuardError
from worker.device.engines.adapter import merged
from worker.device.engines.base import DeviceLost, EngineInfo, LoadOptions, OutOfMemory
from worker.device.engines.fit import check_fit, check_values, quiet, refuse_misfits
from worker.device.inventory import auto_dtype
from worker.guards.adapter import read_adapter
from worker.guards.digest import DigestBook, checkpoint_digest, snapshot

CPU_BUDGET: Final = (1_024, 64)
CUDA_BUDGET: Final = (16_384, 1_024)
"""Tokens and items of a batch where nothing else is said or found."""

_NO_MEMORY: Final = (
    *("can't allocate memory", "not enough memory"),  # torch's own words on a CPU
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""Errors that a smaller batch mends: CUDA's libraries have allocators of their own."""

TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.04}
"""Largest distance allowed between a short cut and a plain forward: rms of the difference of all log-probabilities, in
standard deviations of the plain ones. Rounding alone was measured at 2e-6, 0.001 and 0.01 on random models
of 3 to 24 layers; a prefix one position off at 1.2 where the attention matters."""


def load_model(auto: Any, checkpoint: Path, engine: str, options: LoadOptions) -> tuple[Any, EngineInfo]:  # noqa: ANN401 - transformers has no types
    """The checkpoint's model by this auto class, ready to run, and the facts about it.

    Raises:
        GuardError: checkpoint or adapter is not what it says (see `check_fit`), changes while it is loaded, or its
            numbers are none; or the dtype is none to run in.
        OutOfMemory: the weights do not fit on the device.
    """
    trust, classifies = options.get("trust_remote_code", False), auto is not AutoModelForCausalLM
    folder = options.get("adapter")
    adapter = read_adapter(folder, classifies=classifies) if folder else None
    check_fit(checkpoint, adapter, classifies=classifies, trust_remote_code=trust)
    folders = [checkpoint, *([folder] if folder else [])]
    before, book = list(map(snapshot, folders)), DigestBook(options.get("digests"))
    digest, *adapters = (checkpoint_digest(each, book) for each in folders)
    device = options.get("device", "cpu")
    on_cuda = torch.device(device).type == "cuda"
    name = options.get("dtype", "auto")
    dtype = getattr(torch, _auto_dtype(device) if name == "auto" else name)
    if dtype not in TOLERANCE:
        raise GuardError(f"dtype {name} is none of float32, bfloat16, float16")
    try:
        with quiet(), device_errors():
            model, report = auto.from_pretrained(
                checkpoint,
                dtype=dtype,
                device_map="auto" if options.get("spread") else {"": device},
                offload_folder=options.get("offload_folder"),
                use_safetensors=True,
                trust_remote_code=trust,
                local_files_only=True,
                output_loading_info=True,
            )
            refuse_misfits(checkpoint, report)
            check_values(checkpoint, model)
            if adapter:
                model = merged(model, adapter)
                check_values(adapter.folder, model)
            own_memory(model)
    except (OSError, ValueError, ImportError) as error:
        raise GuardError(f"cannot load {checkpoint}: {error}") from error
    if list(map(snapshot, folders)) != before:
        raise GuardError(f"{checkpoint} changed while it was loaded; wait until it is complete, and start again")
    tokens, items = CUDA_BUDGET if on_cuda else CPU_BUDGET
    info = EngineInfo(
        engine=engine,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        device_name=device_name_of(device),
        revision=":".join(part for part in (options.get("revision"), digest) if part),
        adapter="".join(adapters),
        max_batch_tokens=options.get("max_batch_tokens") or tokens,
        max_batch_items=options.get("max_batch_items") or items,
        context_tokens=int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", 2048)),
    )
    return model.eval(), info


def _auto_dtype(device: str) -> str:
    if torch.device(device).type != "cuda":
        return "float32"
    return auto_dtype(torch.cuda.get_device_capability(device))


def own_memory(model: torch.nn.Module) -> None:
    """Copy weights that are still the file's own pages: overwriting the file would change a model that runs."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor:  # others hold packed numbers
            tensor.data = tensor.data.clone()


def device_name_of(device: str) -> str:
    """The hardware's own name, such as NVIDIA H100 80GB HBM3 or the processor's."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    described = Path("/proc/cpuinfo")
    lines = described.read_text(errors="replace").splitlines() if described.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def check_ids(rows: Sequence[Sequence[int]], vocabulary: int) -> None:
    """On CUDA an id outside the vocabulary is a device-side assert, which costs the whole process.

    Raises:
        ValueError: there is one.
    """
    ids = flat(rows)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(f"an id lies outside the vocabulary of {vocabulary:,}")


def flat(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """All ids one after the other: (sum of lengths,), int32."""
    ids = array("i")
    for row in rows:
        ids.extend(row)
    return torch.frombuffer(ids, dtype=torch.int32) if ids else torch.empty(0, dtype=torch.int32)


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of the rows, filled up to the longest on the right or on the left: (n, longest) int64 each."""
    lengths = torch.tensor([len(row) for row in rows])
    at = torch.arange(int(lengths.max()))[None]
    mask = at >= (len(at[0]) - lengths[:, None]) if left else at < lengths[:, None]
    ids = torch.full(mask.shape, pad)
    ids[mask] = flat(rows).long()
    return ids, mask.long()


@contextmanager
def device_errors() -> Iterator[None]:
    """Torch's errors in the engine's words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        if any(sign in str(error) for sign in _NO_MEMORY):
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        if "CUDA error" in str(error) or "device-side assert" in str(error):
            raise DeviceLost(str(error)) from error
        raise
