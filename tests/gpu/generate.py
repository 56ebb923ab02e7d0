"""Written answers: rates of small and large batches within the memory that was found for them."""

from __future__ import annotations

import time

from tests.gpu.ground import Ground


def run(ground: Ground) -> None:
    engine = ground.engine("seven")
    stops = ground.guard("seven").stop_ids
    new = ground.some(64, 4)
    for count in (16, 128):
        prompts = ground.prompts("seven", ground.some(count, 4))
        began = time.monotonic()
        rows = engine.generate(prompts, max_new_tokens=new, stop_ids=stops)
        seconds = time.monotonic() - began
        ground.check(f"{count} prompts are answered", len(rows) == len(prompts) and all(rows))
        ground.say(
            prompts=len(prompts), items_per_s=round(len(prompts) / seconds, 1), ms_a_step=round(1e3 * seconds / new)
        )
