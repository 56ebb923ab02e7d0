"""Templates to responses, and the headers that every answer under /console bears. Knows no route and no ledger."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

import jinja2
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer.gateway.console.language import Words

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


class Asset(NamedTuple):
    """A file of ours that pages load; its address changes with its content."""

    address: str
    content: bytes
    media_type: str

    def response(self) -> Response:
        """The file, to be kept for good."""
        return Response(self.content, media_type=self.media_type, headers={"Cache-Control": _FOR_GOOD})


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Asset(f"{PATH}/static/{path.name}?{digest}", content, _STATIC_TYPES[path.suffix])


ASSETS: Final = {
    path.name: _asset(path) for path in sorted((_HERE / "static").iterdir()) if path.suffix in _STATIC_TYPES
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
