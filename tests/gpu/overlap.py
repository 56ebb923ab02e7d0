"""A launch waits for nothing that the device computes, and hides behind the batch before it (docs/decisions/0065)."""

from __future__ import annotations

import time

import torch

from tests.gpu.ground import Ground, batches

TOKENS = 8_192


def run(ground: Ground) -> None:
    engine = ground.engine("half", max_batch_tokens=65_536)
    labels = ground.guard("half").label_ids
    plan = batches(
        ground.prompts("half", ground.some(2_000, 8)), ground.some(TOKENS, 512), engine.info.prefix_tokens, 1_024
    )[:24]
    engine.score(plan[0], labels)
    if not ground.dry:
        torch.cuda.set_sync_debug_mode("error")  # anything that waits for the device raises
        try:
            read = engine.launch(plan[0], labels)
            waits = ""
        except RuntimeError as error:
            waits = str(error)[:200]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        ground.check("a launch waits for nothing", not waits, waits=waits)
        if not waits:
            read()
    apart_s = launch_s = 0.0
    for batch in plan:
        began = time.monotonic()
        read = engine.launch(batch, labels)
        launch_s += time.monotonic() - began
        read()
        apart_s += time.monotonic() - began
    began = time.monotonic()
    before = None
    for batch in plan:
        read = engine.launch(batch, labels)
        if before is not None:
            before()
        before = read
    if before is not None:
        before()
    together_s = time.monotonic() - began
    count = len(plan)
    ground.say(
        batches=count,
        **{"launch_ms": round(1e3 * launch_s / count, 2), "apart_ms": round(1e3 * apart_s / count, 2)},
        **{"overlapped_ms": round(1e3 * together_s / count, 2)},
    )
    ground.check("overlapped batches are no slower", ground.dry or together_s <= 1.02 * apart_s)
