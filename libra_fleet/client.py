"""The Python clients of a gateway, for asyncio and without. They need httpx2, pydantic and the schemas, nothing else.

Items that are judged or submitted at about the same time share a request. A request is sent again, under one
idempotency key, when the gateway is away, busy or does not answer: it counts once.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self, TypeVar

import httpx2

from schemas.http import MOST_ITEMS, ItemRequest, ItemVerdict, retry_after_s

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_WAIT_S: Final = 10
"""Seconds that one request asks the gateway to wait; a longer wait is made of several."""

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientError",
    "GatewayTimeoutError",
    "ItemRequest",
    "ItemVerdict",
    "VerdictTimeoutError",
]

T = TypeVar("T")


class ClientError(Exception):
    """Base of every error that a client raises on purpose."""


class AuthenticationError(ClientError):
    """The gateway does not know the API key, or its role may not do this."""


class BadRequestError(ClientError):
    """The gateway refuses the request as it is; the message names the field."""


class GatewayTimeoutError(ClientError, TimeoutError):
    """The gateway did not accept or answer in time. What is not known to be accepted may have been."""


class VerdictTimeoutError(ClientError, TimeoutError):
    """No verdict in time; the item stays accepted and will settle."""


class _PendingCall(NamedTuple):
    item: ItemRequest
    answer: asyncio.Future[dict[str, Any]]


class AsyncClient:
    """A gateway's client for asyncio: `async with AsyncClient(url, key) as client`.

    A proxy is used only where `proxy` names one; HTTP_PROXY and its kind are not read.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        guard: str | None = None,
        gather_s: float = 0.005,
        timeout_s: float = 30,
        proxy: str | None = None,
    ) -> None:
        self._guard = guard
        self._gather_s = gather_s
        self._timeout_s = timeout_s
        self._gathered: dict[bool, list[_PendingCall]] = {}
        self._at_work: set[asyncio.Task[None]] = set()
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=_WAIT_S + 10,
            proxy=proxy,
            trust_env=False,  # texts and the key go where the caller says, never to what HTTP_PROXY names
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for what is on its way, then close the connections."""
        await asyncio.gather(*self._at_work, return_exceptions=True)
        await self._http.aclose()

    async def submit(self, items: Sequence[ItemRequest]) -> list[str]:
        """Submit items; the ids under which each will have its verdict, in the order given.

        Raises:
            BadRequestError: the gateway refuses an item; the message names the field.
            AuthenticationError: the key is unknown or may not submit.
            GatewayTimeoutError: the gateway did not answer in time. What is not known to be accepted may have been.
        """
        answers = await asyncio.gather(*(self._call(item, waits=False) for item in items))
        return [str(answer["id"]) for answer in answers]

    async def judge(
        self,
        text: str | None = None,
        *,
        question: str = "",
        prompt: str | None = None,
        response: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> ItemVerdict:
        """The settled verdict on one text (or on a response to a question).

        Instead of a text that nobody is said to have said: a `prompt`, a `response`, both, or `messages`, each with a
        role (user or assistant) and content, whose last is judged. A guard that cannot judge such an item says so.

        Raises:
            ValueError: none of these forms, or more than one.
            VerdictTimeoutError: no verdict in time; the item stays accepted and will settle.
            BadRequestError, AuthenticationError, GatewayTimeoutError: as `submit`.
        """
        item = _item(text, question=question, prompt=prompt, response=response, messages=messages)
        return await self._judge(item, self._timeout_s if timeout_s is None else timeout_s)

    async def judge_all(self, items: Sequence[ItemRequest]) -> list[ItemVerdict]:
        """The settled verdicts on items, in the order given; it raises what `judge` raises."""
        return await asyncio.gather(*(self._judge(item, self._timeout_s) for item in items))

    async def _judge(self, item: ItemRequest, timeout_s: float) -> ItemVerdict:
        deadline = time.monotonic() + timeout_s
        view = await self._call(item, waits=True)
        pause_s = _FIRST_PAUSE_S
        while view.get("verdict") is None:
            if time.monotonic() >= deadline:
                raise VerdictTimeoutError(f"no verdict in time; {view['id']} will still settle")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
            view = await self._get(f"/v1/items/{view['id']}")
        return _item_verdict(view)

    async def stream(
        self, cursor: str = "0", *, poll_s: float = 0.5, follow: bool = True
    ) -> AsyncIterator[ItemVerdict]:
        """The tenant's verdicts in the order of settling, from a cursor on; each has the cursor to continue from.

        Without `follow`, it ends with the last verdict that has settled by now.
        """
        while True:
            page = await self._get("/v1/verdicts", cursor=cursor, limit=MOST_ITEMS)
            for view in page["data"]:
                yield _item_verdict(view)
            cursor = page["next_cursor"]
            if not page["has_more"]:
                if not follow:
                    return
                await asyncio.sleep(poll_s)

    async def _call(self, item: ItemRequest, *, waits: bool) -> dict[str, Any]:
        call = _PendingCall(item, asyncio.get_running_loop().create_future())
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
        parts = [calls[at : at + MOST_ITEMS] for at in range(0, len(calls), MOST_ITEMS)]
        await asyncio.gather(*(self._send(part, waits=waits) for part in parts))

    async def _send(self, calls: Sequence[_PendingCall], *, waits: bool) -> None:
        body = {
            "items": [call.item.model_dump(exclude_defaults=True) for call in calls],
            **({"guard": self._guard} if self._guard else {}),
        }
        headers = {"Idempotency-Key": uuid.uuid4().hex, **({"Prefer": f"wait={_WAIT_S}"} if waits else {})}
        try:
            views = (await self._ask("POST", "/v1/items", json=body, headers=headers))["data"]
        except BadRequestError as error:
            if len(calls) == 1:
                calls[0].answer.set_exception(error)
            else:  # one bad item must not refuse its neighbours
                await asyncio.gather(*(self._send([call], waits=waits) for call in calls))
        except Exception as error:  # noqa: BLE001 - a task's edge: it is raised where each caller waits
            for call in calls:
                call.answer.set_exception(error)
        else:
            for call, view in zip(calls, views, strict=True):
                call.answer.set_result(view)

    async def _get(self, path: str, **parameters: str | int) -> dict[str, Any]:
        return await self._ask("GET", path, params=parameters)

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx2's options
        """Send a request until it has an answer that a retry would not change."""
        deadline = time.monotonic() + self._timeout_s
        most_s, why = _FIRST_PAUSE_S, "no answer"
        while True:
            pause_s = random.uniform(0, most_s)  # noqa: S311 - jitter, so that not all callers come back at once
            try:
                answer = await self._http.request(method, path, **request)
            except httpx2.TransportError as error:
                why = type(error).__name__
            else:
                if answer.is_success:
                    found: dict[str, Any] = answer.json()
                    return found
                why = _refusal(answer)
                pause_s = max(pause_s, retry_after_s(answer.headers.get("retry-after")))
            if time.monotonic() + pause_s > deadline:
                raise GatewayTimeoutError(f"the gateway did not do it within {self._timeout_s:g} s: {why}")
            await asyncio.sleep(pause_s)
            most_s = min(2 * most_s, _LONGEST_PAUSE_S)


def _refusal(answer: httpx2.Response) -> str:
    """The reason of a refusal that a retry can help."""
    try:
        detail, kind = str(answer.json()["detail"]), str(answer.json()["type"])
    except (ValueError, KeyError, TypeError):  # not from a gateway but from what stands before it
        detail, kind = f"status {answer.status_code}", ""
    if answer.status_code in _RETRYABLE or kind.endswith("request-in-flight"):
        return detail
    if answer.status_code in {401, 403}:
        raise AuthenticationError(detail)
    raise BadRequestError(detail)


def _item(text: str | None, *, messages: Sequence[Mapping[str, Any]] | None, **sides: str | None) -> ItemRequest:
    if text is not None and sides["question"] and sides["response"] is None:
        text, sides["response"] = None, text
    turns = None if messages is None else [dict(message) for message in messages]
    return ItemRequest(text=text, messages=turns, **{name: side for name, side in sides.items() if side is not None})


def _item_verdict(view: dict[str, Any]) -> ItemVerdict:
    place = {name: view.get(name) for name in ("id", "custom_id", "settled_at", "cursor")}
    return ItemVerdict.model_validate({**view["verdict"], **place})


class Client:
    """A gateway's client without asyncio. Thread-safe: what several threads judge at a time shares requests as well."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        guard: str | None = None,
        gather_s: float = 0.005,
        timeout_s: float = 30,
        proxy: str | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway-client", daemon=True)
        self._thread.start()

        async def opened() -> AsyncClient:
            return AsyncClient(url, api_key, guard=guard, gather_s=gather_s, timeout_s=timeout_s, proxy=proxy)

        self._client = self._do(opened())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is on its way, then close the connections."""
        self._do(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def submit(self, items: Sequence[ItemRequest]) -> list[str]:
        """See `AsyncClient.submit`."""
        return self._do(self._client.submit(items))

    def judge(
        self,
        text: str | None = None,
        *,
        question: str = "",
        prompt: str | None = None,
        response: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        timeout_s: float | None = None,
    ) -> ItemVerdict:
        """See `AsyncClient.judge`."""
        judged = self._client.judge(
            text, question=question, prompt=prompt, response=response, messages=messages, timeout_s=timeout_s
        )
        return self._do(judged)

    def judge_all(self, items: Sequence[ItemRequest]) -> list[ItemVerdict]:
        """See `AsyncClient.judge_all`."""
        return self._do(self._client.judge_all(items))

    def stream(self, cursor: str = "0", *, poll_s: float = 0.5, follow: bool = True) -> Iterator[ItemVerdict]:
        """See `AsyncClient.stream`."""
        settled = self._client.stream(cursor, poll_s=poll_s, follow=follow)

        async def following() -> ItemVerdict | None:
            return await anext(settled, None)

        while (verdict := self._do(following())) is not None:
            yield verdict

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
