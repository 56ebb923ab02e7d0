"""How many chunks a bulk consumer holds, by what its device can take."""

from __future__ import annotations

import pytest

from worker.consumer.app import threads_for
from worker.device.engines.base import EngineInfo


def device(tokens: int, *, items: int = 1_024, prefix: int = 131) -> EngineInfo:
    return EngineInfo(
        engine="transformers",
        dtype="bfloat16",
        device="cuda:0",
        revision="r",
        max_batch_tokens=tokens,
        max_batch_items=items,
        context_tokens=32_768,
        prefix_tokens=prefix,
    )


@pytest.mark.parametrize(
    ("info", "threads"),
    [
        (device(32_768), 12),  # 0.5B on an H200: a batch of 210 items
        (device(131_072), 46),
        (device(131_072, items=1_024, prefix=0), 25),
        (device(8_192), 4),
        (device(512, items=64), 4),
        (device(1 << 30, items=1 << 20), 64),
        (device(32_768, items=64), 4),
    ],
)
def test_a_larger_budget_has_more_chunks_in_hand(info: EngineInfo, threads: int) -> None:
    assert threads_for(info, 64) == threads


def test_smaller_chunks_take_more_threads() -> None:
    assert threads_for(device(32_768), 16) == 46
