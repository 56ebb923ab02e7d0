"""The configuration of a device process: one JSON argument."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from schemas.base import Frozen
from schemas.guards import Mode

ATTEMPTS: Final = 3
"""Answers of a server that may be a prompt's own doing, before the prompt is given up."""
OUTAGE_S: Final = 60.0
"""Seconds that a server may be away or overloaded before the device counts as lost."""
WAVES: Final = 4
"""Prompts of a batch per connection to a server: a slow one holds up a quarter of a batch at most."""

EngineName = Literal["transformers", "openai", "fake"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


class ServerSpec(Frozen):
    """An OpenAI-compatible server: its address with the version (`http://host:8000/v1`), and how it may be used.

    `model` is the server's own name for it; none: the only one it serves.
    """

    base_url: str = Field(pattern=r"^https?://[^/\s]")
    model: str | None = None
    api_key_file: Path | None = None
    concurrency: int = Field(default=16, ge=1, le=1024)
    request_timeout_s: float = Field(default=60.0, gt=0)


class DeviceSpec(Frozen):
    """One device process. Budgets that are None are the engine's own.

    `location` is a checkpoint folder or hub id where it is not the guard's own; `family` names the words in which it is
    asked, where they are not those that it shows; `revision` pins a hub revision. `server` is where the engine openai
    finds its model. `device` is as the process itself sees it, after CUDA_VISIBLE_DEVICES; with `devices_per_worker`
    above one accelerate spreads the model over all that it sees.
    """

    guard: str
    socket_path: Path
    heartbeat_path: Path
    engine: EngineName = "transformers"
    server: ServerSpec | None = None
    location: str | None = None
    family: str | None = None
    revision: str | None = None
    modes: tuple[Mode, ...] = (Mode.SCORE,)
    device: str = "cpu"
    devices_per_worker: int = Field(default=1, ge=1)
    dtype: DTypeName = "auto"
    offload_folder: Path | None = None
    trust_remote_code: bool = False
    deterministic: bool = False
    max_batch_tokens: int | None = Field(default=None, ge=1)
    max_batch_items: int | None = Field(default=None, ge=1)
    batch_deadline_s: float = Field(default=120.0, gt=0)
    fake_batch_s: float = Field(default=0.0, ge=0)
    fake_item_s: float = Field(default=0.0, ge=0)
    fake_token_s: float = Field(default=0.0, ge=0)
    fake_overlaps: bool = False
    fake_error: float = Field(default=0.0, ge=0, le=0.5)


def longest_batch_s(request_timeout_s: float) -> float:
    """Return the longest time that a batch on a server can take: every prompt tried to the end, wave after wave."""
    return WAVES * (ATTEMPTS * request_timeout_s + OUTAGE_S)
