"""The types that cross the device socket: ids and numbers only. Knows nothing of text, guards or queues."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import StrEnum

from schemas.messages import Lane


class Kind(StrEnum):
    """The kind of request to an engine."""

    SCORE = "score"
    GENERATE = "generate"
    CLASSIFY = "classify"


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """Prompts to run. `labels` matter in score, `stop_ids`, `max_new_tokens` and `verdict_ids` in generate.

    A continuation may end with the first of the sequences `verdict_ids` in it: the verdict is known.
    `isolate` asks for one batch per prompt (a chunk that was delivered too often). Prompts that are equal in
    all this and wait together run once, unless they belong to different judgements of a repeated run (`iteration`).
    """

    kind: Kind
    lane: Lane
    prompts: list[array[int]]
    labels: tuple[tuple[int, ...], ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_new_tokens: int = 0
    verdict_ids: tuple[tuple[int, ...], ...] = ()
    iteration: int = 0
    isolate: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """Natural-log probabilities: of the request's labels over the whole vocabulary, or of a classifier's classes."""

    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The new ids, without prompt and without the stop id."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dead:
    """The prompt killed the device process, outlived its deadline or cannot fit, `attempts` times."""

    reason: str
    attempts: int


Answer = Scored | Generated | Dead


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """Answers in the order of the prompts, and what the batches they rode in cost.

    `infer_s`, `tokens` and `padded_tokens` are summed over those batches whole, strangers' prompts
    included; `share_s` is what these prompts took of it; `restarts` counts how often the device process was lost on
    the way.
    """

    answers: list[Answer]
    infer_s: float = 0.0
    share_s: float = 0.0
    batches: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    restarts: int = 0
