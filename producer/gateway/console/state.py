"""What one gateway process holds for its console. Routes reach it by `console_of(request)`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fastapi import Request

from infra.broker.app import connect_redis
from producer.gateway.console.fleet import Fleet
from producer.gateway.console.sessions import Sessions
from producer.gateway.state import Gateway


@dataclass
class Console:
    """The gateway that serves it, who is logged in, and what is known of the fleet."""

    gateway: Gateway

    @cached_property
    def sessions(self) -> Sessions:
        """Who is logged in. In a thread: the first use connects to Redis."""
        settings = self.gateway.settings
        client = connect_redis(self.gateway.services.redis_url)
        return Sessions(client, namespace=settings.namespace, lifetime_s=settings.console_session_s)

    @cached_property
    def fleet(self) -> Fleet:
        """What an operator asks."""
        return Fleet(self.gateway)


def console_of(request: Request) -> Console:
    """The console of the gateway that serves this request."""
    console: Console = request.app.state.console
    return console
