"""How the Python client asks again, against a gateway that answers as it is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest

from libra_fleet import AsyncClient, GatewayTimeoutError, ItemRequest, client
from schemas.http import retry_after_s

BUSY = {"type": "urn:libra-fleet:problem:queue-full", "detail": "busy"}
ACCEPTED = {"data": [{"id": "item_r0_0"}]}


class Script:
    """Answers in turn, and keeps what it was asked and how long the client paused before it asked again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: httpx2.Response | Exception) -> None:
        self._answers = list(answers)
        self.asked: list[httpx2.Request] = []
        self.pauses: list[float] = []
        monkeypatch.setattr(client.asyncio, "sleep", self._sleep)

    def client(self, **options: Any) -> AsyncClient:
        """A client whose gateway is this script."""
        made = AsyncClient("http://gateway", "lk_x", gather_s=0, **options)
        made._http = httpx2.AsyncClient(base_url="http://gateway", transport=httpx2.MockTransport(self._answer))
        return made

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def busy(retry_after: str | None = None) -> httpx2.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx2.Response(503, json=BUSY, headers=headers)


def submit(script: Script, **options: Any) -> list[str]:
    async def run() -> list[str]:
        async with script.client(**options) as made:
            return await made.submit([ItemRequest(text="a")])

    return asyncio.run(run())


def test_it_asks_again_under_one_idempotency_key(monkeypatch: pytest.MonkeyPatch) -> None:
    away = httpx2.ConnectError("away")
    script = Script(monkeypatch, busy(), away, busy(), httpx2.Response(202, json=ACCEPTED))

    assert submit(script) == ["item_r0_0"]
    assert len(script.asked) == 4
    assert len({request.headers["Idempotency-Key"] for request in script.asked}) == 1


def test_pauses_are_drawn_from_zero_to_a_bound_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, *(busy() for _ in range(8)), httpx2.Response(202, json=ACCEPTED))
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(client.random, "uniform", lambda low, high: drawn.append((low, high)) or 0.0)

    submit(script)

    assert [high for _, high in drawn[:8]] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert {low for low, _ in drawn} == {0}


def test_a_retry_after_is_waited_for_once_and_may_be_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=8), usegmt=True)
    script = Script(monkeypatch, busy("7"), busy(date), busy("soon"), httpx2.Response(202, json=ACCEPTED))

    submit(script, timeout_s=60)

    told, dated, own = script.pauses[-3:]
    assert told == 7
    assert 5 < dated <= 8
    assert own <= 0.4, "an earlier Retry-After is no bound of a later pause"


def test_a_retry_after_beyond_the_time_out_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GatewayTimeoutError, match="busy"):
        submit(Script(monkeypatch, busy("100")), timeout_s=30)


FAR_OFF = "Thu, 01 Jan 2030 00:00:00 +99999999999999"


@pytest.mark.parametrize(
    "value", [None, "", "soon", "-1", "1.5", "٣", "Thu, 01 Jan 1970 00:00:00 GMT", "\x00", FAR_OFF]
)
def test_a_retry_after_that_says_nothing_is_no_pause(value: str | None) -> None:
    assert retry_after_s(value) == 0
