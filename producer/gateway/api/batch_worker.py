"""A batch from its file to its bulk run: OpenAI's batch input format, each line one request with its texts.

Batches are taken up and submitted in threads of the gateway's own. One whose gateway died is continued by another.
"""

from __future__ import annotations

import codecs
import threading
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import redis
import sqlalchemy as sa
from pydantic import Field, ValidationError

from infra.errors import LibraError, RunEndedError
from infra.ledger import batches, intake, settlement
from infra.ledger.batches import Batch, LineError
from infra.ledger.intake import Submission
from infra.ledger.runs import find_run
from infra.log import get_logger
from producer.datasets.rows import RowError, decode_line
from producer.gateway.api.moderations import ModerationRequest
from producer.gateway.api.requests import GuardSelection, guard_of, item_of, refuse_kinds, submitted
from producer.gateway.problems import ProblemError, field_name
from producer.gateway.state import Gateway
from producer.intake.submit import seal, submit
from schemas.http import ApiRequest, CustomId, ItemRequest
from schemas.items import Dialogue, Item, Retention
from schemas.messages import Lane
from schemas.runs import RunSpec, RunState

log = get_logger(__name__)

Endpoint = Literal["/v1/moderations", "/v1/items"]

_MOST_TEXTS: Final = 50_000
"""OpenAI's limit of lines; here also of texts, since a line may hold several."""
_ERRORS_KEPT: Final = 100
_LEASE_S: Final = 60.0
_LOOK_EVERY_S: Final = 1.0
_THREADS: Final = 2
"""So many batches are submitted at a time: while one waits for room on its queue, another tenant's goes on."""


class BatchItemRequest(ItemRequest):
    """The body of a line for /v1/items: one item, and the guard that judges it."""

    guard: str | None = None


class _Line(ApiRequest):
    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: Annotated[dict[str, Any], Field(min_length=1)]


@dataclass
class BatchOrder:
    """The items that a file orders, with their submissions by the item's id, for one guard."""

    items: list[Item] = field(default_factory=list)
    submissions: dict[str, Submission] = field(default_factory=dict)
    guard: GuardSelection | None = None
    errors: list[LineError] = field(default_factory=list)
    custom_ids: set[str] = field(default_factory=set)


class _LineError(Exception):
    """A bad line: OpenAI's code, a message, and the field where there is one."""


def read_order(content: bytes, batch: Batch, gateway: Gateway) -> BatchOrder:
    """Read a whole file. Where `errors` are found, nothing of it should be judged."""
    order = BatchOrder()
    for number, line in enumerate(_as_utf8(content).splitlines(), 1):
        if len(order.errors) >= _ERRORS_KEPT:
            break
        if line.strip():
            try:
                _add(order, number, line, batch, gateway)
            except _LineError as error:
                order.errors.append(LineError(number, *error.args))
    if not order.items and not order.errors:
        order.errors.append(LineError(1, "empty_file", "the file has no lines"))
    return order


def _as_utf8(content: bytes) -> bytes:
    """A file as editors save it: a byte order mark says UTF-8 or UTF-16, none means UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").encode()
    return content.removeprefix(codecs.BOM_UTF8)


def _add(order: BatchOrder, number: int, raw: bytes, batch: Batch, gateway: Gateway) -> None:
    try:
        line = _Line.model_validate(decode_line(raw))
    except RowError as error:
        raise _LineError("invalid_json_line", str(error)) from None
    except ValidationError as error:
        raise _invalid(error) from None
    if line.url != batch.endpoint:
        raise _LineError("mismatched_url", f"the batch is for {batch.endpoint}", "url")
    if line.custom_id in order.custom_ids:
        raise _LineError("duplicate_custom_id", "another line has this custom_id", "custom_id")
    guard, items = _judgeable(str(number), line, batch.tenant, gateway)
    if len(order.items) + len(items) > _MOST_TEXTS:
        raise _LineError("too_many_lines", f"a file holds {_MOST_TEXTS:,} texts at most")
    if order.guard is not None and guard != order.guard:
        raise _LineError("mismatched_model", f"the lines before are for {order.guard.name}", "body.model")
    order.guard = guard
    order.items.extend(item for item, _ in items)
    order.submissions.update((item.id, submission) for item, submission in items)
    order.custom_ids.add(line.custom_id)


def _judgeable(
    item_id: str, line: _Line, tenant: str, gateway: Gateway
) -> tuple[GuardSelection, list[tuple[Item, Submission]]]:
    """A line's guard, and its texts as items in their order; several share its `custom_id`."""
    try:
        if line.url == "/v1/moderations":
            asked = ModerationRequest.model_validate(line.body)
            guard = guard_of(asked.model, gateway, field="body.model")
            submission = Submission(tenant, line.custom_id, metadata=asked.context)
            names = asked.input_names()
            ids = [item_id] if len(names) == 1 else [f"{item_id}.{at}" for at in range(len(names))]
            texts = zip(asked.input, names, ids, strict=True)
            return guard, [
                (item_of(Dialogue(response=text), fields={"response": name}, where="body.", item_id=one_id), submission)
                for text, name, one_id in texts
            ]
        one = BatchItemRequest.model_validate(line.body)
        item, submission = submitted(one, tenant, gateway, where="body.", item_id=item_id)
        guard = guard_of(one.guard, gateway, field="body.guard")
        refuse_kinds(guard, [item], gateway, ["body"])
        return guard, [(item, submission._replace(custom_id=line.custom_id))]
    except ValidationError as error:
        raise _invalid(error, "body.") from None
    except ProblemError as error:
        raise _LineError("invalid_request", error.detail, str(error.more.get("field"))) from None


def _invalid(error: ValidationError, where: str = "") -> _LineError:
    detail = error.errors(include_input=False, include_url=False)[0]
    name = where + field_name(detail["loc"]) if detail["loc"] else where.rstrip(".") or None
    return _LineError("invalid_request", detail["msg"].removeprefix("Value error, "), name)


class _StoppedError(LibraError):
    """The gateway ends; the batch stays claimed until its lease is over, then another gateway goes on with it."""


class _CancelledError(LibraError):
    """The batch was cancelled."""


class BatchWorker:
    """Looks for batches until stopped."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._services = gateway.services
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="batches", daemon=True) for _ in range(_THREADS)]

    def start(self) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit no more; returns at once."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = batches.claim_batch(self._services.engine, lease_s=_LEASE_S)
                if found is not None:
                    self._take_up(found)
                    continue
            except (sa.exc.SQLAlchemyError, redis.RedisError, LibraError) as error:
                log.warning("batch_waits", error=type(error).__name__)
            self._stop.wait(_LOOK_EVERY_S)

    def _take_up(self, batch_id: str) -> None:
        engine = self._services.engine
        batch = batches.find_batch(engine, batch_id)
        if batch is None:
            return
        content = batches.file_content(engine, batch.input_file_id)
        if content is None:
            self._fail(batch, [LineError(1, "file_gone", "the input file was deleted")])
            return
        order = read_order(content, batch, self._gateway)
        if order.errors or order.guard is None:
            self._fail(batch, order.errors)
            return
        spec = RunSpec(
            guard=order.guard.name,
            mode=order.guard.mode,
            lane=Lane.BULK,
            source=f"batch:{batch.id}",
            tenant=batch.tenant,
            form=self._gateway.settings.text_form,
        )
        run_id = batches.begin_run(engine, batch_id, intake.new_run_id())
        try:
            self._submit(batch_id, run_id, spec, order)
        except _CancelledError:
            log.info("batch_cancelled", batch=batch_id)
        except _StoppedError:
            return
        self._end(batch_id, run_id)
        if self._services.settings.retention is not Retention.FULL:
            batches.delete_file(engine, batch.input_file_id)

    def _fail(self, batch: Batch, errors: list[LineError]) -> None:
        """End a batch that cannot go on. What an earlier gateway submitted of it is cancelled, unless it was all."""
        engine = self._services.engine
        run = find_run(engine, batch.run_id) if batch.run_id else None
        if run is not None and run.state is not RunState.OPEN:
            self._end(batch.id, run.id)
            return
        if run is not None:
            cancel_run(self._gateway, run.id)
        batches.fail_batch(engine, batch.id, errors)

    def _end(self, batch_id: str, run_id: str) -> None:
        """Note that all is submitted; where the batch was cancelled since the last look, its run is cancelled first."""
        if not batches.end_submission(self._services.engine, batch_id):
            cancel_run(self._gateway, run_id)
            batches.end_submission(self._services.engine, batch_id, cancelled=True)

    def _submit(self, batch_id: str, run_id: str, spec: RunSpec, order: BatchOrder) -> None:
        """Submit the items that the run does not hold yet, and seal it; nothing happens where that was done."""
        engine = self._services.engine

        def check() -> None:
            if self._stop.is_set():
                raise _StoppedError("the gateway ends")
            if not batches.renew_batch(engine, batch_id, lease_s=_LEASE_S):
                raise _CancelledError("the batch is cancelled")

        status = find_run(engine, run_id)
        if status is None:
            intake.create_run(engine, spec, run_id=run_id, name=batch_id)
        elif status.state is not RunState.OPEN:
            return
        check()
        submissions = order.submissions
        submit(self._services, run_id, spec, order.items, check=check, submission_of=lambda item: submissions[item.id])
        seal(self._services, run_id)


def cancel_run(gateway: Gateway, run_id: str) -> None:
    """Settle what is pending in a run as dead, with the reason "cancelled"; nothing happens to a run that has ended."""
    services = gateway.services
    status = find_run(services.engine, run_id)
    if status is None or status.state not in (RunState.OPEN, RunState.SEALED):
        return
    try:
        settled = settlement.cancel(services.engine, run_id)
    except RunEndedError:  # since it was found
        return
    services.coordination.notices.cancelled(run_id)
    if settled.finished:
        services.publisher.finalize(run_id)
