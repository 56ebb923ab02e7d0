"""The Python client of a gateway, for asyncio and without; producer/intake/live.py talks to the servers themselves.

with GatewayClient("http://127.0.0.1:8000", api_key) as client:
    print(client.judge("要审核的文本").label)

Items that are judged or submitted at about the same time share a request. A request is sent again, under one
idempotency key, when the gateway is away, busy or does not answer: it counts once.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx2

from infra.errors import DataError, RunError, ServerError, UsageError
from schemas.items import Label
from schemas.verdicts import Outcome

_MOST_ITEMS: Final = 1_000
_AGAIN: Final = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_WAIT_S: Final = 10
"""How long one request asks the gateway to wait; a longer wait is made of several."""

T = TypeVar("T")


@dataclass(frozen=True)
class NewItem:
    """An item to submit: a single text, or a response with the question that it answers."""

    text: str
    question: str = ""
    custom_id: str | None = None
    policy: str | None = None
    callback_url: str | None = None
    metadata: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """As the gateway takes it."""
        texts = {"response": self.text, "question": self.question} if self.question else {"text": self.text}
        said = {
            "custom_id": self.custom_id,
            "policy": self.policy,
            "callback_url": self.callback_url,
            "metadata": self.metadata,
        }
        return {**texts, **{name: value for name, value in said.items() if value is not None}}


@dataclass(frozen=True)
class Judged:
    """A settled item. `p_unsafe` is None where the guard gives no number; `cursor` is the item's place in the feed."""

    id: str
    custom_id: str | None
    outcome: Outcome
    label: Label | None
    p_unsafe: float | None
    categories: tuple[str, ...]
    reason: str | None
    settled_at: datetime
    cursor: str | None = None


@dataclass
class _PendingCall:
    item: NewItem
    waits: bool
    answer: asyncio.Future[dict[str, Any]]


class AsyncGatewayClient:
    """A gateway's client for asyncio: `async with AsyncGatewayClient(url, key) as client`."""

    def __init__(
        self, url: str, api_key: str, *, guard: str | None = None, gather_s: float = 0.005, timeout_s: float = 30
    ) -> None:
        self._guard = guard
        self._gather_s = gather_s
        self._timeout_s = timeout_s
        self._gathered: dict[bool, list[_PendingCall]] = {}
        self._at_work: set[asyncio.Task[None]] = set()
        self._http = httpx2.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=_WAIT_S + 10
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for what is on its way, then hang up."""
        await asyncio.gather(*self._at_work, return_exceptions=True)
        await self._http.aclose()

    async def submit(self, items: Sequence[NewItem]) -> list[str]:
        """Submit items; the ids under which each will have its verdict, in the order given.

        Raises:
            DataError: the gateway refuses an item; the message names the field.
            UsageError: the key opens nothing.
            ServerError: the gateway did not answer in time. What is not known to be accepted may have been.
        """
        answers = await asyncio.gather(*(self._wish(item, waits=False) for item in items))
        return [str(answer["id"]) for answer in answers]

    async def judge(self, text: str, *, question: str = "", timeout_s: float | None = None) -> Judged:
        """The settled verdict on one text (or on a response to a question).

        Raises:
            RunError: no verdict in time; the item stays accepted and will settle.
            DataError, UsageError, ServerError: as `submit`.
        """
        return await self._judge(NewItem(text, question), self._timeout_s if timeout_s is None else timeout_s)

    async def judge_all(self, items: Sequence[NewItem]) -> list[Judged]:
        """The settled verdicts on items, in the order given.

        Raises:
            RunError, DataError, UsageError, ServerError: as `judge`.
        """
        return await asyncio.gather(*(self._judge(item, self._timeout_s) for item in items))

    async def _judge(self, item: NewItem, timeout_s: float) -> Judged:
        deadline = time.monotonic() + timeout_s
        view = await self._wish(item, waits=True)
        pause_s = _FIRST_PAUSE_S
        while view.get("verdict") is None:
            if time.monotonic() >= deadline:
                raise RunError(f"no verdict in time; {view['id']} will still settle")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
            view = await self._get(f"/v1/items/{view['id']}")
        return _judged(view)

    async def stream(self, cursor: str = "0", *, poll_s: float = 0.5, follow: bool = True) -> AsyncIterator[Judged]:
        """What settles of the tenant's items, from a cursor on; each has the cursor to go on from.

        Without `follow`, it ends with what has settled by now.
        """
        while True:
            page = await self._get("/v1/verdicts", cursor=cursor, limit=_MOST_ITEMS)
            for view in page["data"]:
                yield _judged(view)
            cursor = page["next_cursor"]
            if not page["has_more"]:
                if not follow:
                    return
                await asyncio.sleep(poll_s)

    async def _wish(self, item: NewItem, *, waits: bool) -> dict[str, Any]:
        call = _PendingCall(item, waits, asyncio.get_running_loop().create_future())
        gathered = self._gathered.setdefault(waits, [])
        gathered.append(call)
        if len(gathered) == 1:
            task = asyncio.create_task(self._send_gathered(waits))
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)
        return await call.answer

    async def _send_gathered(self, waits: bool) -> None:  # noqa: FBT001 - private, and only ever named
        await asyncio.sleep(self._gather_s)
        calls = self._gathered.pop(waits)
        parts = [calls[at : at + _MOST_ITEMS] for at in range(0, len(calls), _MOST_ITEMS)]
        await asyncio.gather(*map(self._send, parts))

    async def _send(self, calls: Sequence[_PendingCall]) -> None:
        body = {"items": [call.item.to_json() for call in calls], **({"guard": self._guard} if self._guard else {})}
        headers = {"Idempotency-Key": uuid.uuid4().hex, **({"Prefer": f"wait={_WAIT_S}"} if calls[0].waits else {})}
        try:
            views = (await self._ask("POST", "/v1/items", json=body, headers=headers))["data"]
        except DataError as error:
            if len(calls) == 1:
                calls[0].answer.set_exception(error)
            else:  # one bad item must not refuse its neighbours
                await asyncio.gather(*(self._send([call]) for call in calls))
        except Exception as error:  # noqa: BLE001 - a task's edge: it is raised where each caller waits
            for call in calls:
                call.answer.set_exception(error)
        else:
            for call, view in zip(calls, views, strict=True):
                call.answer.set_result(view)

    async def _get(self, path: str, **parameters: str | int) -> dict[str, Any]:
        return await self._ask("GET", path, params=parameters)

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx2's options
        """Ask until there is an answer that asking again would not change."""
        deadline = time.monotonic() + self._timeout_s
        pause_s, why = _FIRST_PAUSE_S, "no answer"
        while True:
            try:
                answer = await self._http.request(method, path, **request)
            except httpx2.TransportError as error:
                why = type(error).__name__
            else:
                if answer.is_success:
                    found: dict[str, Any] = answer.json()
                    return found
                why = _refusal(answer)
                pause_s = max(pause_s, float(answer.headers.get("retry-after", "0")))
            if time.monotonic() + pause_s > deadline:
                raise ServerError(f"the gateway did not do it within {self._timeout_s:g} s: {why}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _refusal(answer: httpx2.Response) -> str:
    """Why the gateway did not do it, where asking again can help.

    Raises:
        UsageError, DataError: it cannot.
    """
    try:
        detail, kind = str(answer.json()["detail"]), str(answer.json()["type"])
    except (ValueError, KeyError, TypeError):  # not from a gateway but from what stands before it
        detail, kind = f"status {answer.status_code}", ""
    if answer.status_code in _AGAIN or kind.endswith("request-in-flight"):
        return detail
    if answer.status_code in {401, 403}:
        raise UsageError(detail)
    raise DataError(detail)


def _judged(view: dict[str, Any]) -> Judged:
    verdict = view["verdict"]
    return Judged(
        id=view["id"],
        custom_id=view["custom_id"],
        outcome=Outcome(verdict["outcome"]),
        label=Label(verdict["label"]) if verdict["label"] else None,
        p_unsafe=verdict["p_unsafe"],
        categories=tuple(verdict["categories"]),
        reason=verdict["reason"],
        settled_at=datetime.fromisoformat(view["settled_at"]),
        cursor=view.get("cursor"),
    )


class GatewayClient:
    """A gateway's client without asyncio. Thread-safe: what several threads judge at a time shares requests as well."""

    def __init__(
        self, url: str, api_key: str, *, guard: str | None = None, gather_s: float = 0.005, timeout_s: float = 30
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway-client", daemon=True)
        self._thread.start()
        self._client = self._do(_opened(url, api_key, guard=guard, gather_s=gather_s, timeout_s=timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is on its way, then hang up."""
        self._do(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, items: Sequence[NewItem]) -> list[str]:
        """See `AsyncGatewayClient.submit`."""
        return self._do(self._client.submit(items))

    def judge(self, text: str, *, question: str = "", timeout_s: float | None = None) -> Judged:
        """See `AsyncGatewayClient.judge`."""
        return self._do(self._client.judge(text, question=question, timeout_s=timeout_s))

    def judge_all(self, items: Sequence[NewItem]) -> list[Judged]:
        """See `AsyncGatewayClient.judge_all`."""
        return self._do(self._client.judge_all(items))

    def stream(self, cursor: str = "0", *, poll_s: float = 0.5, follow: bool = True) -> Iterator[Judged]:
        """See `AsyncGatewayClient.stream`."""
        settled = self._client.stream(cursor, poll_s=poll_s, follow=follow)
        while (judged := self._do(_next_of(settled))) is not None:
            yield judged

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _opened(url: str, api_key: str, **options: Any) -> AsyncGatewayClient:  # noqa: ANN401 - passed on
    return AsyncGatewayClient(url, api_key, **options)


async def _next_of(settled: AsyncIterator[Judged]) -> Judged | None:
    return await anext(settled, None)
