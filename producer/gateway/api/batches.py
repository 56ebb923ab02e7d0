"""`/v1/files` and `/v1/batches` in OpenAI's shapes: a file in, a bulk run over it, results and errors as files out.

Output files are not stored: they are read from the ledger whenever they are asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Annotated, Any, Final, Literal, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import Response, StreamingResponse

from infra.ledger import batches as ledger
from infra.ledger import feed
from infra.ledger.batches import Batch, StoredFile
from infra.ledger.feed import SubmittedItem
from infra.ledger.intake import AlreadyMadeError, KeyInFlightError, KeyReusedError, find_made
from producer.gateway.api.batch_worker import Endpoint, cancel_run
from producer.gateway.api.items import item_view
from producer.gateway.api.moderation_result import moderation_result
from producer.gateway.api.requests import IdempotencyHeader, key_problem, once_of
from producer.gateway.problems import BadFieldError, NoSuchThingError, ProblemError
from producer.gateway.state import Gateway, Here, Principal, Reader, Submitter
from schemas.http import ApiRequest, Metadata
from schemas.items import submitted_name
from schemas.runs import RunState
from schemas.verdicts import Outcome

_OUTPUT: Final = "file-output-"
_ERRORS: Final = "file-errors-"
_JSONL: Final = "application/jsonl"
_LONGEST_FILENAME: Final = 200
_PURGED: Final = {
    **{"line": None, "code": "purged", "param": None},
    "message": "the batch's run was purged, and its results with it",
}
_NO_LABEL: Final = "the guard's answer has no label"

router = APIRouter(prefix="/v1", tags=["batches"])
_Owned = TypeVar("_Owned", StoredFile, Batch)


class BatchRequest(ApiRequest):
    """OpenAI's request. Results are read from the ledger, so `output_expires_after` is accepted and has no effect."""

    input_file_id: str
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: dict[str, Any] | None = None


@router.post("/files")
async def upload_file(
    *,
    principal: Submitter,
    gateway: Here,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[Literal["batch"], Form()],
) -> dict[str, Any]:
    """Upload a JSONL file for a batch."""
    content = await file.read()
    if not content:
        raise BadFieldError("file", "empty")
    filename = "".join(c for c in file.filename or "" if c.isprintable())[:_LONGEST_FILENAME] or "unnamed"
    stored = await gateway.ask(
        ledger.store_file,
        tenant=principal.tenant,
        filename=filename,
        purpose=purpose,
        content=content,
    )
    return _file_view(stored)


@router.get("/files")
async def list_files(
    *,
    principal: Reader,
    gateway: Here,
    purpose: str | None = None,
    after: Annotated[str | None, Query(pattern=r"^file-[0-9a-f]{20}$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """The tenant's uploaded files, newest first unless asked otherwise."""
    if purpose not in (None, "batch"):
        return _list([], has_more=False)
    newest_first = order == "desc"
    found = await gateway.ask(
        ledger.list_files, principal.tenant, after=after, limit=limit + 1, newest_first=newest_first
    )
    return _list([_file_view(stored) for stored in found[:limit]], has_more=len(found) > limit)


@router.get("/files/{file_id}")
async def get_file(file_id: str, principal: Reader, gateway: Here) -> dict[str, Any]:
    """A file that was uploaded, without its content."""
    return _file_view(await _own(ledger.find_file, "file", file_id, principal, gateway))


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, principal: Submitter, gateway: Here) -> dict[str, Any]:
    """Forget a file."""
    stored = await _own(ledger.find_file, "file", file_id, principal, gateway)
    await gateway.ask(ledger.delete_file, stored.id)
    return {"id": stored.id, "object": "file", "deleted": True}


@router.get("/files/{file_id}/content", response_class=Response)
async def get_file_content(file_id: str, principal: Reader, gateway: Here) -> Response:
    """The uploaded content, or a batch's results or errors, a line for each item."""
    for prefix in (_OUTPUT, _ERRORS):
        if file_id.startswith(prefix):
            batch = await _own(ledger.find_batch, "batch", file_id.removeprefix(prefix), principal, gateway)
            if not _has_ended(batch) or batch.run_id is None or batch.purged:
                raise NoSuchThingError("file", file_id[:80])
            return StreamingResponse(_result_lines(gateway, batch, errors=prefix == _ERRORS), media_type=_JSONL)
    stored = await _own(ledger.find_file, "file", file_id, principal, gateway)
    return Response(await gateway.ask(ledger.file_content, stored.id) or b"", media_type=_JSONL)


@router.post("/batches")
async def create_batch(
    *,
    asked: BatchRequest,
    principal: Submitter,
    request: Request,
    gateway: Here,
    idempotency_key: IdempotencyHeader = None,
) -> dict[str, Any]:
    """Order the judging of a file; its lines are checked when the batch is taken up, seconds later."""
    once = once_of(idempotency_key, principal, "batches", await request.body())
    try:
        made = await gateway.ask(find_made, once) if once else None
        if made is None:
            await _own(ledger.find_file, "file", asked.input_file_id, principal, gateway)
            batch_id = await gateway.ask(
                ledger.create_batch,
                tenant=principal.tenant,
                input_file_id=asked.input_file_id,
                endpoint=asked.endpoint,
                metadata=asked.metadata,
                once=once,
            )
            made = {"batch": batch_id}
    except NoSuchThingError:
        raise BadFieldError("input_file_id", "no such file") from None
    except AlreadyMadeError as error:
        made = error.made
    except (KeyReusedError, KeyInFlightError) as error:
        raise key_problem(error) from error
    return batch_view(await _own(ledger.find_batch, "batch", str(made.get("batch")), principal, gateway))


@router.get("/batches/{batch_id}")
async def get_batch(batch_id: str, principal: Reader, gateway: Here) -> dict[str, Any]:
    """A batch with its status."""
    return batch_view(await _own(ledger.find_batch, "batch", batch_id, principal, gateway))


@router.get("/batches")
async def list_batches(
    *,
    principal: Reader,
    gateway: Here,
    after: Annotated[str | None, Query(pattern=r"^batch_[0-9a-f]{20}$")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The tenant's batches, newest first."""
    found = await gateway.ask(ledger.list_batches, principal.tenant, after=after, limit=limit + 1)
    return _list([batch_view(batch) for batch in found[:limit]], has_more=len(found) > limit)


def _list(page: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """OpenAI's page of a list."""
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, "has_more": has_more, **ends}


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, principal: Submitter, gateway: Here) -> dict[str, Any]:
    """End a batch: what is pending settles as dead with the reason "cancelled"."""
    batch = await _own(ledger.find_batch, "batch", batch_id, principal, gateway)
    if _has_ended(batch):
        raise ProblemError(409, "ended", f"the batch is {_status(batch)}")
    submitting = await gateway.ask(ledger.ask_to_cancel, batch.id)
    asked = await _own(ledger.find_batch, "batch", batch_id, principal, gateway)
    if not submitting and asked.run_id is not None:
        await asyncio.to_thread(cancel_run, gateway, asked.run_id)
    return batch_view(await _own(ledger.find_batch, "batch", batch_id, principal, gateway))


async def _own(
    find: Callable[[sa.Engine, str], _Owned | None], what: str, name: str, principal: Principal, gateway: Gateway
) -> _Owned:
    found = None
    if name.isascii() and name.isprintable():
        found = await gateway.ask(find, name)
    if found is None or not principal.sees(found.tenant):
        raise NoSuchThingError(what, name[:80])
    return found


def _result_lines(gateway: Gateway, batch: Batch, *, errors: bool) -> Iterator[bytes]:
    """A batch's results, or its `errors`, as OpenAI's JSONL: a line for each of the input file's.

    A line of several texts is an error where one of them is: a text that was not judged is never left out of a result.
    """
    refused = set(Outcome) - {Outcome.SCORED} if gateway.settings.unjudged == "error" else {Outcome.DEAD}
    in_order = feed.batch_items(gateway.services.engine, str(batch.run_id))
    for custom_id, group in groupby(in_order, key=lambda item: item.custom_id):
        items = [item for item in group if item.verdict is not None]
        bad = [item.verdict for item in items if item.verdict and item.verdict.outcome in refused]
        if not items or bool(bad) != errors:
            continue
        name = submitted_name(items[0].run_id, items[0].seq)
        line: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": custom_id, "response": None, "error": None}
        if bad:
            line["error"] = {
                "code": bad[0].outcome.value,
                "message": bad[0].reason or _NO_LABEL,
            }
        else:
            body = item_view(items[0]) if batch.endpoint == "/v1/items" else _moderation(gateway, items)
            line["response"] = {"status_code": 200, "request_id": name, "body": body}
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _moderation(gateway: Gateway, items: Sequence[SubmittedItem]) -> dict[str, Any]:
    """OpenAI's moderation of the texts of one line."""
    unnamed = gateway.settings.unnamed_category
    named = [(item.verdict, submitted_name(item.run_id, item.seq)) for item in items if item.verdict is not None]
    results = [moderation_result(verdict, name, unnamed_category=unnamed) for verdict, name in named]
    return {"id": f"modr-{named[0][1]}", "model": items[0].guard, "results": results}


def _has_ended(batch: Batch) -> bool:
    return batch.failed_at is not None or batch.purged or (batch.state is not None and batch.state.ended)


def _status(batch: Batch) -> str:
    """OpenAI's word for where the batch stands; `expired` says that its results were purged."""
    if batch.failed_at is not None or batch.purged:
        return "expired" if batch.failed_at is None else "failed"
    if batch.state is not None and batch.state.ended:
        return "cancelled" if batch.state is RunState.CANCELLED else "completed"
    if batch.cancelling_at is not None:
        return "cancelling"
    if batch.state is RunState.FINALIZING:
        return "finalizing"
    return "validating" if batch.state is None else "in_progress"


def batch_view(batch: Batch) -> dict[str, Any]:
    """OpenAI's batch object; a batch here expires only by its results being purged."""
    counts = batch.counts
    errors = [error._asdict() for error in batch.errors] + ([_PURGED] if batch.purged else [])
    ended = _has_ended(batch) and batch.run_id is not None and batch.state is not None
    done: dict[str, int | None] = {"completed_at": None, "cancelled_at": None}
    if batch.state is not None and batch.state.ended:
        done["cancelled_at" if batch.state is RunState.CANCELLED else "completed_at"] = _unix(batch.completed_at)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": _status(batch),
        "output_file_id": f"{_OUTPUT}{batch.id}" if ended else None,
        "error_file_id": f"{_ERRORS}{batch.id}" if ended and counts and counts.dead else None,
        "created_at": _unix(batch.created_at),
        "in_progress_at": _unix(batch.run_at),
        "expires_at": None,
        "finalizing_at": _unix(batch.settled_at),
        "failed_at": _unix(batch.failed_at),
        "expired_at": None,
        "cancelling_at": _unix(batch.cancelling_at),
        **done,
        "request_counts": {
            "total": counts.accepted if counts else 0,
            "completed": counts.scored + counts.unparseable if counts else 0,
            "failed": counts.dead if counts else 0,
        },
        "metadata": batch.metadata,
        "run_id": batch.run_id,
    }


def _unix(timestamp: datetime | None) -> int | None:
    return None if timestamp is None else int(timestamp.timestamp())


def _file_view(stored: StoredFile) -> dict[str, Any]:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.size_bytes,
        "created_at": _unix(stored.created_at),
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": "processed",
    }
