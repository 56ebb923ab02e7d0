"""Composition root of a consumer: settings and a device socket become a running Celery worker.

`python -m worker.consumer.app SPEC` runs one consumer (one lane of one device); the supervisor starts two of them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from celery import Celery, Task
from celery.exceptions import Reject, SecurityWarning
from celery.signals import setup_logging

from infra import tracing
from infra.broker.app import JUDGE, TRACEPARENT, make_app, queue_of, worker_queues
from infra.broker.dead_letters import DeadLetters, dead_letter_consumer
from infra.broker.queues import Unacked
from infra.coordination.cache import open_cache
from infra.coordination.store import open_coordination
from infra.errors import DeviceAwayError, DeviceChangedError, DeviceProtocolError, LibraError
from infra.log import configure_logging, get_logger
from infra.process import die_with_parent, leave_out_of_collections
from infra.settings import Settings, load_settings
from schemas.guards import Mode
from schemas.messages import Lane, MessageError
from schemas.verdicts import CategoriesBy, Fingerprint
from worker.consumer.answers import AnswerCache
from worker.consumer.deliveries import Deliveries
from worker.consumer.pins import Pins
from worker.consumer.reading import GuardClock, Reader
from worker.consumer.tasks import Judge
from worker.device.client import DeviceClient
from worker.device.engines.base import EngineInfo
from worker.device.heartbeat import Heartbeat
from worker.guards.base import Guard
from worker.guards.registry import load_guard

log = get_logger(__name__)

_UNSURE: Final = 10
"""Times its patience that a chunk is passed on while some worker may have its run's fingerprint."""
_LOAD_TIMEOUT_S: Final = 1800.0
"""How long a consumer that starts waits for a device process that is being respawned."""
_PATIENCE: Final = 0.5
"""The part of a lease for which a chunk waits for a device process that is away, before another worker gets it."""
_LEAST_PATIENCE_S: Final = 5.0
_FEWEST_THREADS: Final = 4
_MOST_THREADS: Final = 64
_BATCHES_IN_HAND: Final = 3.5
_WHOLE_TOKENS: Final = 290
_LATER_TOKENS: Final = 156
"""Mean ids of a prompt of Libra Bench in Qwen's vocabulary, whole and behind the shared prefix. Other data differ, and
a thread more costs little."""
_RETURN_PAUSE_S: Final = 1.0
"""The pause before a chunk goes back because of an error; it does so a few times at most."""


@dataclass(frozen=True)
class ConsumerSpec:
    """The configuration of one consumer, from its supervisor. `weights`: whether the checkpoint's weights are here too.

    `threads`: chunks in hand at once; None: by the device's budget. `devices`: over how many the model is spread.
    `apart`: read every item in a process of its own, because consumers before this one died.
    """

    guard: str
    location: str | None
    lane: Lane
    device_socket: str
    worker_id: str
    threads: int | None
    weights: bool = True
    devices: int = 1
    apart: bool = False
    family: str | None = None

    @property
    def heartbeat_path(self) -> Path:
        """The file of its pulse, next to the device's."""
        return Path(self.device_socket).with_suffix(f".{self.lane.value}.pulse")

    def to_argument(self) -> str:
        """The spec as a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> ConsumerSpec:
        """The inverse of `to_argument`."""
        fields: dict[str, Any] = json.loads(argument)
        return cls(**{**fields, "lane": Lane(fields["lane"])})


def fingerprints_of(guard: Guard, info: EngineInfo) -> dict[Mode, Fingerprint]:
    """The fingerprint of this guard on a device with this engine, per mode."""
    return {
        mode: Fingerprint(
            guard=guard.name,
            model=guard.model,
            revision=info.revision,
            prompt=guard.prompt_digest,
            mode=mode,
            dtype=info.dtype,
            engine=info.engine,
            adapter=info.adapter,
        )
        for mode in Mode
    }


def threads_for(info: EngineInfo, chunk_items: int) -> int:
    """Bulk chunks to hold at once: enough for the batches that a device has in hand, with some to spare.

    One batch runs, one is launched or gathers, and one is on its way: rendered, tokenised, answered or published.
    """
    tokens = _LATER_TOKENS if info.prefix_tokens else _WHOLE_TOKENS
    items = min(info.max_batch_items, info.max_batch_tokens / tokens)
    return max(_FEWEST_THREADS, min(_MOST_THREADS, math.ceil(_BATCHES_IN_HAND * items / chunk_items)))


class GuardFacts(NamedTuple):
    """What a worker announces of its guard: the digests of its fingerprints by mode, and the kinds it judges."""

    fingerprints: dict[str, str]
    kinds: tuple[str, ...]


def leave_facts(device_socket: Path, guard: Guard, fingerprints: dict[Mode, Fingerprint]) -> None:
    """Write the facts to a file next to the device's socket; the supervisor reads and announces them.

    Raises:
        DeviceProtocolError: another consumer of this device process has left others. The checkpoint's tokenizer or
            template was replaced since the process loaded its weights, and has to be loaded with them.
    """
    digests = {mode.value: fingerprint.digest for mode, fingerprint in fingerprints.items()}
    facts = GuardFacts(digests, tuple(kind.value for kind in guard.kinds))
    if read_facts(device_socket) not in (None, facts):
        raise DeviceProtocolError(f"the tokenizer of {guard.name} was replaced since its device process was started")
    place = _facts_file(device_socket)
    fresh = place.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(facts._asdict()))
    fresh.replace(place)


def read_facts(device_socket: Path) -> GuardFacts | None:
    """What a consumer left there; None until one has started."""
    place = _facts_file(device_socket)
    if not place.is_file():
        return None
    facts: dict[str, Any] = json.loads(place.read_text())
    return GuardFacts(facts["fingerprints"], tuple(facts["kinds"]))


def forget_facts(device_socket: Path) -> None:
    """Remove what consumers left there: a device process that is started anew may hold another model."""
    _facts_file(device_socket).unlink(missing_ok=True)


def _facts_file(device_socket: Path) -> Path:
    return device_socket.with_suffix(".facts")


def register_judge(app: Celery, judge: Judge, dead_letters: DeadLetters, queue: str) -> None:
    """Make `judge` the task that this consumer runs."""

    @app.task(name=JUDGE, bind=True)  # type: ignore[untyped-decorator]
    def run(task: Task, body: str) -> None:
        try:
            with tracing.following(task.request.get(TRACEPARENT)):
                judge(body, task.request.properties["delivery_tag"])
        except MessageError as error:
            log.error("chunk_parked", reason=str(error))
            dead_letters.put(queue, str(error), body)
        except DeviceAwayError as error:
            log.error("device_away", error=str(error))
            raise Reject(str(error), requeue=True) from error
        except DeviceProtocolError as error:
            # The package was replaced under us: our successor is of the new version, and gets our chunks.
            log.error("device_of_another_version", error=str(error))
            os._exit(error.exit_code)
        except DeviceChangedError as error:
            # Our verdicts would bear the old model's fingerprint: our successor learns the new one.
            log.error("checkpoint_replaced", error=str(error))
            os._exit(error.exit_code)
        except Exception as error:
            # Never dropped: it goes back after a pause, and from its third return on, item by item.
            name = type(error).__name__
            log.error("chunk_returned", error=f"{name}: {error}" if isinstance(error, LibraError) else name)
            time.sleep(_RETURN_PAUSE_S)
            raise Reject(name, requeue=True) from error


def run_consumer(spec: ConsumerSpec, settings: Settings) -> None:
    """Consume one lane until SIGTERM; returns after what was in hand is published and acknowledged."""
    clock = GuardClock()
    heartbeat = Heartbeat(spec.heartbeat_path)
    heartbeat.keep_beating(clock.is_well)
    redis_url = settings.require_redis_url()
    app = make_app(redis_url, settings)
    coordination = open_coordination(redis_url, settings)
    guard = load_guard(spec.guard, spec.location, weights=spec.weights, family=spec.family)
    socket_path = Path(spec.device_socket)
    lease_s = settings.live_lease_s if spec.lane is Lane.LIVE else settings.bulk_lease_s
    info = DeviceClient(socket_path, reconnect_timeout_s=_LOAD_TIMEOUT_S).info
    device = DeviceClient(
        socket_path,
        max_deaths=settings.max_item_deaths,
        reconnect_timeout_s=max(_LEAST_PATIENCE_S, lease_s * _PATIENCE),
        silence_s=settings.silence_s,
        expected=info,
    )
    fingerprints = fingerprints_of(guard, info)
    leave_facts(socket_path, guard, fingerprints)
    queue = queue_of(spec.guard, spec.lane)
    # A server's model is known by its name alone, and can change under it.
    cached = settings.cache_ttl_s and not info.engine.startswith("openai")
    cache = open_cache(redis_url, settings) if cached else None
    deliveries = Deliveries(
        coordination,
        queue=queue,
        worker_id=spec.worker_id,
        longest_hold_s=settings.visibility_timeout_s,
        cache=cache,
        may_take=lambda: not device.is_away,
    )
    judge = Judge(
        guard=guard,
        device=device,
        deliveries=deliveries,
        fingerprints=fingerprints,
        worker_id=spec.worker_id,
        reader=Reader(
            spec.guard,
            spec.location,
            weights=spec.weights,
            prompt_digest=guard.prompt_digest,
            family=spec.family,
        ),
        apart=spec.apart,
        clock=clock,
        cache=None if cache is None else AnswerCache(cache, settings.retention),
        device_name=info.device_name or info.device,
        devices=spec.devices,
        category_lanes=_category_lanes(guard, settings),
        pins=Pins(
            deliveries,
            coordination.presence.announced,
            patience_s=settings.max_attempts * settings.bulk_lease_s,
            unsure_patience_s=_UNSURE * settings.max_attempts * settings.bulk_lease_s,
        ),
    )
    register_judge(app, judge, coordination.dead_letters, queue)
    stop = threading.Event()
    threading.Thread(target=deliveries.keep, args=(stop,), daemon=True, name="holder").start()
    threading.Thread(target=_look_for_device, args=(device, stop), daemon=True, name="device-watch").start()
    heartbeat.ready()
    leave_out_of_collections()
    run_celery(
        app,
        coordination.dead_letters,
        queue,
        threads=spec.threads or threads_for(info, settings.chunk_items),
        hostname=f"{spec.lane.value}-{spec.worker_id}",
        unacked=deliveries,
    )
    stop.set()


def _category_lanes(guard: Guard, settings: Settings) -> Collection[Lane]:
    """The lanes in which the guard's second question is asked."""
    question = guard.category_question
    if question and question.by is CategoriesBy.EXPERIMENT and not settings.scenario_experiment:
        return ()
    lanes: dict[str, Collection[Lane]] = {"all": tuple(Lane), "live": (Lane.LIVE,), "none": ()}
    return lanes[settings.score_categories]


def _look_for_device(device: DeviceClient, stop: threading.Event) -> None:
    """While no device process answers, nothing is taken: see, every second, whether one is back."""
    while not stop.wait(1.0):
        if device.is_away:
            device.look_for_device()


def run_celery(
    app: Celery,
    dead_letters: DeadLetters,
    *queues: str,
    threads: int,
    hostname: str,
    unacked: Unacked | None = None,
) -> None:
    """Consume queues with a pool of threads until SIGTERM; what cannot be read goes to the dead-letter queue."""
    app.conf.task_queues = worker_queues(*queues)
    setup_logging.connect(lambda **_: None, weak=False)  # unless somebody answers, Celery configures logging itself
    warnings.simplefilter("ignore", SecurityWarning)  # it warns root of pickle, which is not accepted here
    worker = app.Worker(
        consumer_cls=dead_letter_consumer(dead_letters.put, unacked),
        hostname=hostname,
        pool="threads",
        concurrency=threads,
        queues=list(queues),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=None,
        quiet=True,
        optimization="fair",
    )
    worker.start()


def main() -> None:
    """Run the consumer that the first argument specifies."""
    settings = load_settings()
    die_with_parent(parent_pid=settings.parent_pid)
    spec = ConsumerSpec.from_argument(sys.argv[1])
    configure_logging(settings.log_level, settings.log_format, worker=spec.worker_id, lane=spec.lane.value)
    tracing.start(settings.otlp_endpoint, "libra-consumer")
    try:
        run_consumer(spec, settings)
    except LibraError as error:
        log.error("consumer_failed", error=str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
