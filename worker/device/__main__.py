"""`python -m worker.device SPEC`: loads one engine and serves it.

SPEC is a `DeviceSpec` as JSON. One JSON line on stdout says that it listens, or why it could not load
(then also on stderr, and the exit code is 5).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from infra import tracing
from infra.errors import DeviceError, GuardError, LibraError, UsageError
from infra.guard_catalogue import GUARDS
from infra.log import configure_logging, get_logger
from infra.process import die_with_parent, leave_out_of_collections
from infra.settings import load_settings
from schemas.guards import Mode
from schemas.messages import ChunkItem
from worker.device.engines.base import DeviceLost, Engine, LoadOptions
from worker.device.heartbeat import Heartbeat
from worker.device.server import DEADLINE_TOKENS, serve
from worker.device.spec import DeviceSpec
from worker.device.versions import refuse_older

log = get_logger("worker.device")

_PROBE = ChunkItem(seq=0, question="你好", response="world 123。")
"""Prompt sent to a server when the engine starts, to see what it can do."""


def main(arguments: list[str]) -> int:
    """Load and serve; returns the exit code."""
    # Ctrl-C reaches the whole terminal group; the supervisor decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Stdout is for our one line; whatever a library prints goes to stderr from now on.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        settings = load_settings()
        die_with_parent(parent_pid=settings.parent_pid)
        spec = DeviceSpec.model_validate_json(arguments[0] if arguments else "")
    except UsageError as error:
        return _fail(report, error)
    except ValueError as error:
        return _fail(report, UsageError(f"bad device spec: {error}"))
    configure_logging(settings.log_level, settings.log_format, guard=spec.guard, device=spec.device)
    # The caller decides if an item's trace is sampled; its batches follow.
    tracing.start(settings.otlp_endpoint, "libra-device", guard=spec.guard, always=True)
    heartbeat = Heartbeat(spec.heartbeat_path)
    heartbeat.keep_beating()  # while loading as well
    try:
        engine = load_engine(spec, settings.state_dir)
    except GuardError as error:
        return _fail(report, error)
    except Exception as error:  # noqa: BLE001 - torch, transformers and safetensors each raise their own
        return _fail(report, GuardError(f"cannot load {spec.guard}: {type(error).__name__}: {error}"))
    leave_out_of_collections()
    try:
        serve(
            spec.socket_path,
            engine,
            heartbeat=heartbeat,
            pid=os.getpid(),
            batch_deadline_s=spec.batch_deadline_s,
            deadline_tokens=None if spec.server else DEADLINE_TOKENS,  # a server's deadline is by its requests
            on_ready=lambda: _say(report, {"ready": True, "pid": os.getpid(), "guard": spec.guard}),
        )
    except DeviceLost:
        log.exception("accelerator_lost")
        # A broken CUDA context can hang the interpreter's own way out.
        os._exit(DeviceError.exit_code)
    except LibraError as error:
        return _fail(report, error)
    return 0


def load_engine(spec: DeviceSpec, state_dir: Path | None = None) -> Engine:
    """The engine a spec asks for, with the prefix its guard's prompts share.

    `state_dir` keeps what would have to be found again: batch budgets and digests of weights.
    """
    from worker.guards.registry import load_guard, resolve_adapter, resolve_checkpoint  # noqa: PLC0415

    if spec.engine == "fake":
        from worker.device.engines.fake import FakeEngine  # noqa: PLC0415 - one engine per process

        budgets = {"max_batch_tokens": spec.max_batch_tokens, "max_batch_items": spec.max_batch_items}
        given = {name: value for name, value in budgets.items() if value is not None}
        guard = load_guard(spec.guard, spec.location, weights=False)
        return FakeEngine(
            batch_s=spec.fake_batch_s,
            item_s=spec.fake_item_s,
            token_s=spec.fake_token_s,
            error=spec.fake_error,
            prefix_tokens=len(guard.prefix_ids(Mode.SCORE)) if Mode.SCORE in guard.modes else 0,
            overlaps=spec.fake_overlaps,
            **given,
        )

    if spec.server is not None:
        from worker.device.engines.openai import connect  # noqa: PLC0415

        guard = load_guard(spec.guard, spec.location, weights=False, family=spec.family)
        if Mode.CLASSIFY in guard.modes:
            raise GuardError(f"{spec.guard} is a classifier, which no completions server runs")
        if resolve_adapter(spec.guard, spec.location):
            raise GuardError(
                f"{spec.guard}: a server merges its adapters itself; name the base alone here, and the server's name "
                "for the adapter with --model"
            )
        mode = Mode.SCORE if Mode.SCORE in guard.modes else Mode.GENERATE
        return connect(
            spec.server,
            resolve_checkpoint(spec.guard, spec.location, weights=False),
            probe=guard.render([_PROBE], mode)[0][0],
            labels=guard.label_ids,
            max_batch_tokens=spec.max_batch_tokens,
            max_batch_items=spec.max_batch_items,
        )
    refuse_older()
    card = GUARDS.get(spec.guard)
    if card and card.needs_remote_code and not (spec.trust_remote_code or spec.location):
        raise GuardError(f"{card.name} brings its own code, which is not run without --trust-remote-code ({card.note})")
    guard = load_guard(spec.guard, spec.location, family=spec.family)
    checkpoint = resolve_checkpoint(spec.guard, spec.location)
    options: LoadOptions = {
        "adapter": resolve_adapter(spec.guard, spec.location),
        "device": spec.device,
        "dtype": spec.dtype,
        "spread": spec.devices_per_worker > 1,
        "offload_folder": spec.offload_folder,
        "trust_remote_code": spec.trust_remote_code,
        "revision": spec.revision,
        "digests": state_dir / "digests.json" if state_dir else None,
        "max_batch_tokens": spec.max_batch_tokens,
        "max_batch_items": spec.max_batch_items,
    }
    # Torch takes seconds to import: only where it is needed, and after what may fail sooner.
    if Mode.CLASSIFY in guard.modes:
        from worker.device.engines.classifier import ClassifierEngine  # noqa: PLC0415

        return ClassifierEngine(checkpoint, multi_label=getattr(guard, "multi_label", None), **options)
    from worker.device.engines.budget import BudgetBook  # noqa: PLC0415
    from worker.device.engines.transformers import TransformersEngine  # noqa: PLC0415

    prefix_ids = guard.prefix_ids(Mode.SCORE) if Mode.SCORE in spec.modes else ()
    return TransformersEngine(
        checkpoint,
        prefix_ids=prefix_ids,
        deterministic=spec.deterministic,
        budgets=BudgetBook(state_dir / "budgets") if state_dir else None,
        **options,
    )


def _fail(report: TextIO, error: LibraError) -> int:
    message = " ".join(str(error).split())
    sys.stderr.write(f"{message}\n")
    _say(report, {"ready": False, "error": message})
    return error.exit_code


def _say(report: TextIO, line: dict[str, Any]) -> None:
    report.write(json.dumps(line) + "\n")
    report.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
