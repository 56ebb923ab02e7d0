"""Out of memory in a running server: each prompt is answered, the budget falls and comes back; probing for one ends."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from pathlib import Path

import torch

from schemas.messages import Lane
from tests.gpu.ground import GIB, Ground, forget
from worker.device.client import DeviceClient
from worker.device.engines.budget import BudgetBook
from worker.device.heartbeat import Heartbeat
from worker.device.protocol import DeviceRequest, DeviceResult, Kind, Scored
from worker.device.server import Server, listen

LEFT_BYTES = 700 << 20
"""Memory that a neighbour leaves us."""


def run(ground: Ground) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gpu-", dir="/tmp"))
    began = time.monotonic()
    engine = ground.engine("half", budgets=BudgetBook(folder / "budgets"))
    probed_s = time.monotonic() - began
    peak = None if ground.dry else round(torch.cuda.max_memory_allocated() / GIB, 2)
    ground.check("probing for a budget ends", probed_s < 60, s=round(probed_s, 1), peak_gib=peak)
    server = Server(engine, Heartbeat(folder / "pulse"))
    listener = listen(folder / "s")
    threading.Thread(target=server.accept, args=(listener, 1), daemon=True).start()
    threading.Thread(target=server.run, daemon=True).start()
    client, turns = DeviceClient(folder / "s"), itertools.count()
    prompts, labels = ground.prompts("half", ground.some(600, 8)), ground.guard("half").label_ids

    def ask() -> DeviceResult:
        return client.run(DeviceRequest(Kind.SCORE, Lane.BULK, prompts, labels=labels, iteration=next(turns)))

    full = server._budget
    ask()
    neighbour = None
    if not ground.dry:
        neighbour = torch.empty(torch.cuda.mem_get_info()[0] - LEFT_BYTES, dtype=torch.uint8, device=ground.device)
        forget()
    began = time.monotonic()
    answers = ask().answers
    ground.check(
        "out of memory is survived",
        all(isinstance(answer, Scored) for answer in answers),
        budget_before=full,
        budget_after=server._budget,
        s=round(time.monotonic() - began, 1),
    )
    del neighbour
    forget()
    for _ in range(ground.some(80, 2)):
        ask()
    ground.check("the budget comes back", ground.dry or server._budget == full, budget=server._budget)
