"""The console's strings, templates and static files, and the headers of every answer under /console.

Strings are read from strings.yaml; the language is chosen by cookie or Accept-Language. Knows no route and no ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import jinja2
import yaml
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.taxonomy import find_scenario, find_subcategory

PATH: Final = "/console"
FRAGMENT: Final = "x-console-fragment"
"""A request with this header is our own script's and wants a part of the page."""

_HERE: Final = Path(__file__).parent
_STATIC_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD: Final = "max-age=31536000, immutable"
_JUST_NOW_S: Final = 10


class Language(StrEnum):
    """Languages, by the codes that HTML uses."""

    EN = "en"
    ZH = "zh"

    @property
    def other(self) -> Language:
        """The one to switch to."""
        return Language.ZH if self is Language.EN else Language.EN


CATALOGUE: Final[Mapping[str, Mapping[str, str]]] = yaml.safe_load(
    _HERE.joinpath("strings.yaml").read_text(encoding="utf-8")
)
"""Every string by its name, then by language."""


def language_of(cookie: str | None, accept: str) -> Language:
    """The visitor's own choice, else the first language of Accept-Language (RFC 9110) that is spoken here."""
    if cookie in set(Language):
        return Language(cookie)
    best, best_quality = Language.EN, 0.0
    for part in accept.split(","):
        tag, _, parameter = part.partition(";")
        code = tag.strip().lower().partition("-")[0]
        name, _, value = parameter.strip().partition("=")
        try:
            quality = float(value) if name == "q" else 1.0
        except ValueError:
            continue
        if quality > best_quality and code in set(Language):
            best, best_quality = Language(code), quality
    return best


class Words:
    """The strings of one language; a template calls it as `say("queue.title", n=3)`."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, name: str, **values: object) -> str:
        """A string of the catalogue with its places filled."""
        text = CATALOGUE[name][self.language]
        return text.format(**values) if values else text

    def category(self, code: str) -> str:
        """A category as the taxonomy calls it; the guard's own code where the taxonomy has none."""
        known = find_subcategory(code) or find_scenario(code)
        if known is None:
            return code
        return known.name_zh if self.language is Language.ZH else known.name

    def duration(self, seconds: float) -> str:
        """A span of time in its largest fitting unit."""
        for name, unit_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
            if seconds >= 2 * unit_s:
                return self(f"time.{name}", n=int(seconds // unit_s))
        return self("time.seconds", n=int(seconds)) if seconds >= 10 else self("time.seconds", n=f"{seconds:.1f}")

    def age(self, timestamp: datetime, now: datetime) -> str:
        """The time since then, in words."""
        seconds = (now - timestamp).total_seconds()
        return self("time.ago", span=self.duration(seconds)) if seconds >= _JUST_NOW_S else self("time.just_now")


class Asset(NamedTuple):
    """A file of ours that pages load; its address changes with its content."""

    address: str
    content: bytes
    media_type: str

    def response(self) -> Response:
        """The file, to be kept for good."""
        return Response(self.content, media_type=self.media_type, headers={"Cache-Control": _FOR_GOOD})


ASSETS: Final = {
    path.name: Asset(
        f"{PATH}/static/{path.name}?{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}",
        path.read_bytes(),
        _STATIC_TYPES[path.suffix],
    )
    for path in sorted((_HERE / "static").iterdir())
    if path.suffix in _STATIC_TYPES
}

_HEADERS: Final = {
    b"content-security-policy": (
        b"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    b"x-frame-options": b"DENY",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}
_NOT_KEPT: Final = (b"cache-control", b"no-store")

_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, words: Words, *, status: int = 200, **values: object) -> Response:
    """A page, or a part of one."""
    html = _ENVIRONMENT.get_template(template).render(say=words, console=PATH, assets=ASSETS, **values)
    return HTMLResponse(html, status, {"Content-Language": words.language})


def go_to(place: str = "") -> Response:
    """Send the browser to another page of the console."""
    return RedirectResponse(PATH + place, 303)


class ConsoleHeaders:
    """Puts the headers on every answer under /console, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not (scope["path"] == PATH or scope["path"].startswith(PATH + "/")):
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = any(name == _NOT_KEPT[0] for name, _ in message["headers"])
                message["headers"] = [*message["headers"], *_HEADERS.items(), *([] if kept else [_NOT_KEPT])]
            await send(message)

        await self._app(scope, receive, answer)
