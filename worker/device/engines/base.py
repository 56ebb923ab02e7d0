"""The contract between the device process and an engine."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

from infra.errors import DeviceError


class OutOfMemory(DeviceError):  # noqa: N818 - it is the condition's name, not a failure of ours
    """The batch did not fit; the caller halves its budget and tries again."""


class DeviceLost(DeviceError):  # noqa: N818 - likewise
    """The accelerator's context is beyond repair (a device-side assert): only a new process helps."""


class PartlyAnswered(DeviceError):  # noqa: N818 - likewise
    """Some prompts of a batch will never have an answer, the others have theirs.

    `reasons` says why by position; `answers` holds an empty row there.
    """

    def __init__(self, answers: Sequence[Sequence[float]], reasons: Mapping[int, str]) -> None:
        super().__init__(f"{len(reasons)} of {len(answers)} prompts have no answer")
        self.answers = answers
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about a loaded engine that the fingerprint and the batcher need.

    `packs`: prompts run without padding, so that a batch is as large as its prompts together. `prefix_tokens` is the
    length of the shared prefix that scoring need not run again. `device_name` is the hardware's own name. `overlaps`: a
    batch can be launched while the one before it is computed (see `Launches`). `max_generate_tokens` bounds a batch
    that writes, prompts and new tokens together, by the memory for their keys and values; None: as `max_batch_tokens`.
    `adapter` is the digest of the adapter that was merged into the weights, if one was.
    """

    engine: str
    dtype: str
    device: str
    revision: str
    max_batch_tokens: int
    max_batch_items: int
    context_tokens: int
    packs: bool = False
    prefix_tokens: int = 0
    device_name: str = ""
    overlaps: bool = False
    max_generate_tokens: int | None = None
    adapter: str = ""


class LoadOptions(TypedDict, total=False):
    """Options for loading a checkpoint; an absent one is the engine's own choice.

    `adapter` is the folder of a LoRA adapter that is merged into it.
    `spread` lets accelerate place the layers over all visible devices, the rest in `offload_folder`. `digests` is the
    file that remembers the digests of weights; without it they are read anew.
    """

    adapter: Path | None
    device: str
    dtype: str
    spread: bool
    offload_folder: Path | None
    trust_remote_code: bool
    revision: str | None
    digests: Path | None
    max_batch_tokens: int | None
    max_batch_items: int | None


class Engine(Protocol):
    """One loaded model on one device (or spread over several by accelerate)."""

    @property
    def info(self) -> EngineInfo:
        """Facts fixed at load time."""

    def score(self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label as the continuation of each prompt: len(prompts) x len(labels).

        Raises:
            OutOfMemory: the batch is too large for the device.
            PartlyAnswered: some prompts will never have an answer.
            DeviceLost: the process must end.
            ValueError: an id is outside the vocabulary, the answer is not a number, or the model cannot do it.
        """

    def generate(
        self,
        prompts: Sequence[array[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        verdict_ids: Sequence[Sequence[int]] = (),
    ) -> list[tuple[int, ...]]:
        """Greedy continuation of each prompt, without the stop id.

        It may end with the first of the sequences `verdict_ids` in it: the verdict is known. Raises what `score` does.
        """

    def classify(self, prompts: Sequence[array[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each class of a classification head, per prompt. Raises what `score` does."""


@runtime_checkable
class Launches(Protocol):
    """An engine whose device computes on its own once a batch is launched: the next one can be launched meanwhile."""

    def launch(
        self, prompts: Sequence[array[int]], labels: Sequence[Sequence[int]]
    ) -> Callable[[], Sequence[Sequence[float]]]:
        """Begin `score`; the function that is returned waits for its rows. Both raise what `score` does."""
