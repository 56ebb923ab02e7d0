"""The sender: takes due messages from the outbox, signs and sends them, stores the outcome. Any number may run.

Only a 2xx is a success. Everything else is retried by the schedule, later if the receiver asks for it, until the
schedule is over; 410 disables the endpoint. No redirect is followed and no answer's body is read. A sender looks when
something settles, and every LIBRA_WEBHOOK_POLL_S for what no notice announces: retries, reviews, a lost notice.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final, NamedTuple

import httpx2
import redis
import sqlalchemy as sa
from redis.client import PubSub

from infra.coordination.store import CoordinationStore
from infra.ledger import webhooks
from infra.ledger.webhooks import Delivery
from infra.log import get_logger
from infra.settings import Settings
from producer.webhooks.addresses import Allowed, IpAddress, RefusedAddressError, checked_addresses
from producer.webhooks.shares import Shares
from producer.webhooks.signing import signed
from schemas.http import retry_after_s

log = get_logger(__name__)

_GONE: Final = 410
_OVERLOADED: Final = 429
_SERVERS_FAULT: Final = 500
_JITTER: Final = 0.2
_LONGEST_RETRY_AFTER_S: Final = 86_400.0
_LONGEST_PAUSE_S: Final = 30.0
_GRACE_S: Final = 30.0
_LEDGER_AWAY_S: Final = 1.0
_LOOKS_APART_S: Final = 0.1
"""While a bulk run settles, a notice comes with every chunk; the outbox is not asked for each of them."""
_STOPS_WITHIN_S: Final = 0.25


class Answer(NamedTuple):
    """The end of one attempt: a status, or the error where there was none."""

    status: int | None
    error: str = ""
    retry_after_s: float = 0.0


class Sender:
    """Sends from one ledger until stopped."""

    def __init__(self, engine: sa.Engine, settings: Settings, coordination: CoordinationStore) -> None:
        self._engine = engine
        self._notices = coordination.notices
        self._allowed = Allowed.parse(settings.webhook_allow)
        self._retry_s = settings.webhook_retry_s
        self._timeout_s = settings.webhook_timeout_s
        self._connections = settings.webhook_connections
        self._poll_s = settings.webhook_poll_s
        self._channel: PubSub | None = None
        self._shares = Shares(settings.webhook_connections)

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set; returns when what was begun has ended."""
        asyncio.run(self._run(stop))

    async def _run(self, stop: threading.Event) -> None:
        running: set[asyncio.Task[None]] = set()
        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(self._timeout_s),
            # Connections are made to addresses: kept alive, one made for a host could serve another of its address.
            limits=httpx2.Limits(max_connections=self._connections, max_keepalive_connections=0),
            follow_redirects=False,
            trust_env=False,  # the environment is read in infra.settings only
        )
        with ExitStack() as subscription:
            async with http:
                while not stop.is_set():
                    try:
                        taken = await asyncio.to_thread(self._take, self._connections - len(running))
                    except sa.exc.SQLAlchemyError as error:
                        log.warning("ledger_away", error=str(error.__cause__ or error).strip())
                        await asyncio.sleep(_LEDGER_AWAY_S)
                        taken = []
                    for delivery in taken:
                        self._shares.begin(delivery.destination, delivery.tenant)
                        task = asyncio.create_task(self._deliver(http, delivery))
                        running.add(task)
                        task.add_done_callback(running.discard)
                    if len(running) >= self._connections:
                        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    elif running and not taken:  # what ends makes room for what waits
                        await asyncio.wait(running, timeout=_LOOKS_APART_S, return_when=asyncio.FIRST_COMPLETED)
                    elif not taken:
                        await asyncio.to_thread(self._wait_for_notice, stop, subscription)
                    else:
                        await asyncio.sleep(0)
                if running:
                    await asyncio.wait(running)

    def _wait_for_notice(self, stop: threading.Event, subscription: ExitStack) -> None:
        """Return when something has settled anywhere, at the latest after the poll's pause, or when stopped.

        Notices that come while the sender is at work wait in the subscription, so that none is missed between a look
        and this call. Where Redis is away, what remains is the poll.
        """
        until = time.monotonic() + self._poll_s
        stop.wait(min(_LOOKS_APART_S, self._poll_s))
        notified = False
        try:
            if self._channel is None:
                self._channel = subscription.enter_context(self._notices.watching_all())
            while not (notified or stop.is_set()) and (left_s := until - time.monotonic()) > 0:
                notified = self._channel.get_message(timeout=min(left_s, _STOPS_WITHIN_S)) is not None
            while self._channel.get_message(timeout=0) is not None:
                pass  # one look at the outbox answers all notices that have come
        except redis.RedisError as error:
            log.warning("notices_unheard", error=type(error).__name__)
            subscription.close()
            self._channel = None
            stop.wait(max(0.0, until - time.monotonic()))

    def _take(self, limit: int) -> list[Delivery]:
        return webhooks.take_due(
            self._engine,
            limit=limit,
            lease_s=self._timeout_s + _GRACE_S,
            rooms=self._shares.rooms(),
            first_room=self._shares.first,
            full_tenants=self._shares.full_tenants(),
        )

    async def _deliver(self, http: httpx2.AsyncClient, delivery: Delivery) -> None:
        began = time.monotonic()
        answer = await self._attempt(http, delivery)
        took_s = time.monotonic() - began
        answered = answer.status is not None
        self._shares.end(delivery.destination, delivery.tenant, answered=answered, took_s=took_s)
        try:
            await asyncio.to_thread(self._settle, delivery, answer)
        except sa.exc.SQLAlchemyError as error:  # the lease brings it back; a receiver knows it by its id
            log.warning("ledger_away", error=str(error.__cause__ or error).strip(), message=delivery.id)

    async def _attempt(self, http: httpx2.AsyncClient, delivery: Delivery) -> Answer:
        if delivery.url is None:
            return Answer(None, "the endpoint was removed")
        if not delivery.secrets:
            return Answer(None, "no secret to sign with: libra webhooks secret TENANT makes one")
        try:
            uid = delivery.endpoint_id or delivery.tenant
            message = signed(delivery.id, datetime.now(UTC), delivery.body, delivery.secrets, uid=uid)
            async with asyncio.timeout(self._timeout_s):
                addresses = await checked_addresses(delivery.url, self._allowed)
                return await _post(http, delivery.url, addresses, message.headers, message.body)
        except RefusedAddressError as error:
            return Answer(None, f"refused: {error}")
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout_s:g} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            return Answer(None, f"{type(error).__name__}: {error}")

    def _settle(self, delivery: Delivery, answer: Answer) -> None:
        facts = {"message": delivery.id, "endpoint": delivery.endpoint_id, "attempt": delivery.attempt}
        if answer.status is not None and 200 <= answer.status < 300:
            webhooks.note_delivered(self._engine, delivery, answer.status)
            log.info("webhook_delivered", **facts, status=answer.status)
            return
        why = answer.error or f"the receiver answered {answer.status}"
        retry_s = None  # the schedule is over, or the endpoint is gone
        if delivery.attempt <= len(self._retry_s) and answer.status != _GONE:
            jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter, not a secret
            asked_s = min(answer.retry_after_s, _LONGEST_RETRY_AFTER_S)  # never retried earlier than the receiver asks
            retry_s = max(self._retry_s[delivery.attempt - 1] * jitter, asked_s)
        # Other messages to the same endpoint would fail now too, and wait.
        is_down = answer.status is None or answer.status == _OVERLOADED or answer.status >= _SERVERS_FAULT
        pause_s = min(retry_s or 0.0, _LONGEST_PAUSE_S) if is_down else 0.0
        webhooks.note_failed(self._engine, delivery, why, status=answer.status, retry_s=retry_s, pause_s=pause_s)
        if answer.status == _GONE and delivery.endpoint_id:
            webhooks.disable_endpoint(self._engine, delivery.endpoint_id, why)
        log.warning("webhook_failed", **facts, reason=why, retry_s=retry_s and round(retry_s, 1))


async def _post(
    http: httpx2.AsyncClient, url: str, addresses: list[IpAddress], headers: Mapping[str, str], body: bytes
) -> Answer:
    """One attempt at each address in turn until one can be connected to."""
    target = httpx2.URL(url).copy_with(fragment=None)
    headers = {
        **headers,
        "host": target.netloc.decode(),
        "user-agent": "libra-fleet",
    }
    name = {"sni_hostname": target.raw_host.decode()}  # the certificate is checked for the name, not the address
    for left, address in enumerate(addresses, 1 - len(addresses)):
        request = http.build_request(
            "POST", target.copy_with(host=str(address)), content=body, headers=headers, extensions=name
        )
        try:
            response = await http.send(request, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            if not left:
                raise
            continue
        await response.aclose()
        return Answer(response.status_code, retry_after_s=retry_after_s(response.headers.get("retry-after")))
    raise httpx2.ConnectError("the name has no address")
