"""The visitor of the console: sessions, from the cookie to a principal, and what a form must bring.

A session is a random token in the visitor's cookie; Redis holds its hash with the id of the key that logged in, and
nothing of the key itself. A session says which key it stands for, not that the key is still good: that is asked of
the ledger at every request.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from functools import cached_property
from typing import Annotated, Final, NamedTuple, cast

import redis
from fastapi import Depends, Form, Request
from fastapi.responses import Response

from infra.broker.app import connect_redis
from infra.ledger import keys
from infra.ledger.keys import ApiKey
from producer.gateway.console.pages import FRAGMENT, PATH, Words, go_to, language_of, render
from producer.gateway.console.panels import Fleet
from producer.gateway.problems import ProblemError
from producer.gateway.state import Gateway, Principal
from schemas.access import Scope

SESSION_COOKIE: Final = "libra_session"
LANGUAGE_COOKIE: Final = "libra_language"

_TOKEN_BYTES: Final = 32
_LONGEST_TOKEN: Final = 64
YEAR_S: Final = 31_536_000


def new_token() -> str:
    """A random token."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def csrf_of(token: str) -> str:
    """The token that every form carries: only our own pages can read it, and it does not reveal the cookie's token."""
    return hmac.digest(token.encode(), b"console form", "sha256").hex()


def is_csrf_of(token: str, given: str) -> bool:
    """True if a form was made for the cookie that came with it."""
    return bool(token) and hmac.compare_digest(csrf_of(token).encode(), given.encode())


class Console:
    """The console of one gateway: its sessions, each of which ends by itself some time after its login, and its fleet.

    The methods are for a thread; the first one that is called connects to Redis.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway: Final = gateway
        self.fleet: Final = Fleet(gateway)

    @cached_property
    def _redis(self) -> redis.Redis:
        return connect_redis(self.gateway.services.redis_url)

    def _name(self, token: str) -> str:
        return f"{self.gateway.settings.namespace}:console:session:{hashlib.sha256(token.encode()).hexdigest()}"

    def begin_session(self, key_id: str) -> str:
        """Log a key in; returns the cookie's token."""
        token = new_token()
        self._redis.set(self._name(token), key_id, ex=self.gateway.settings.console_session_s)
        return token

    def key_of(self, token: str) -> ApiKey | None:
        """The key that a session stands for, if there is such a session and the key is still good."""
        key_id = cast("str | None", self._redis.get(self._name(token)))
        return keys.valid_key(self.gateway.services.engine, key_id) if key_id else None

    def end_session(self, token: str) -> None:
        """Log out."""
        self._redis.delete(self._name(token))


def console_of(request: Request) -> Console:
    """The console of the gateway that serves this request."""
    return cast("Console", request.app.state.console)


class PageError(ProblemError):
    """A problem that a person reads: the same status, as a page."""

    def __init__(self, status: int, words: Words, message: str) -> None:
        super().__init__(status, "console", message)
        self._words = words

    def response(self, request_id: str | None = None, *, path: str = "") -> Response:  # noqa: ARG002 - a page for all
        """The page."""
        return render("message.html", self._words, status=self.status, message=self.detail, request_id=request_id)


class LoginFirstError(ProblemError):
    """No login: a page redirects to the login; our script reads the status and goes there itself."""

    def __init__(self, *, fragment: bool) -> None:
        super().__init__(401, "console", "log in first")
        self._fragment = fragment

    def response(self, request_id: str | None = None, *, path: str = "") -> Response:
        """The way to the login."""
        return super().response(request_id, path=path) if self._fragment else go_to("/login")


class Visitor(NamedTuple):
    """A logged-in person, with the token that their forms carry."""

    principal: Principal
    csrf: str

    @property
    def tenant(self) -> str | None:
        """The tenant whose items are shown; None for all tenants."""
        return None if self.principal.may(Scope.ADMIN) else self.principal.tenant

    @property
    def may_decide(self) -> bool:
        """True if decisions are theirs to make."""
        return self.principal.may(Scope.DECIDE)

    @property
    def may_try(self) -> bool:
        """True if they may have a text judged."""
        return self.principal.may(Scope.MODERATE)


def token_of(request: Request) -> str:
    """The session token of the cookie, or nothing."""
    token = request.cookies.get(SESSION_COOKIE, "")
    return token if len(token) <= _LONGEST_TOKEN and token.isascii() else ""


def words_of(request: Request) -> Words:
    """The visitor's language."""
    return Words(language_of(request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language", "")))


def is_fragment(request: Request) -> bool:
    """True if our script asks for a part of the page."""
    return FRAGMENT in request.headers


AnyWords = Annotated[Words, Depends(words_of)]


async def checked_form(request: Request, words: AnyWords, csrf: Annotated[str, Form(max_length=100)] = "") -> None:
    """A dependency of every POST: the form is ours, or 403."""
    if not is_csrf_of(token_of(request), csrf):
        raise PageError(403, words, words("error.csrf"))


async def logged_in(request: Request, console: Annotated[Console, Depends(console_of)]) -> Visitor:
    """A dependency: the visitor, whose key is still good."""
    token = token_of(request)
    key = await asyncio.to_thread(console.key_of, token) if token else None
    if key is None:
        raise LoginFirstError(fragment=is_fragment(request))
    return Visitor(Principal(key.tenant, key.id, key.role), csrf_of(token))


LoggedIn = Annotated[Visitor, Depends(logged_in)]


def set_cookie(
    request: Request, response: Response, value: str, *, name: str = SESSION_COOKIE, lifetime_s: int | None = None
) -> None:
    """Set a cookie that no script can read, and that no other site makes the browser send with a form."""
    secure = request.url.scheme == "https"
    response.set_cookie(name, value, max_age=lifetime_s, path=PATH, httponly=True, samesite="lax", secure=secure)
