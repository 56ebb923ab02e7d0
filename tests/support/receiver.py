"""A platform's side of a webhook: a real HTTP server on loopback that answers as it is told and keeps what it got."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Received(NamedTuple):
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """A sender connects as often at once as it likes; the library's 5 would have connections reset."""


class Receiver:
    """Answers with `answers` in turn, then with 204; `status` alone may be given, or with headers.

    While `answering` is cleared, what arrives is kept and waits for its answer.
    """

    def __init__(self, port: int = 0, *, tls: tuple[Path, Path] | None = None) -> None:
        self.answers: list[int | tuple[int, dict[str, str]]] = []
        self.received: list[Received] = []
        self.answering = threading.Event()
        self.answering.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the sender died between its headers and its body: no request, no answer
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body))
                receiver.answering.wait()
                answer = receiver.answers.pop(0) if receiver.answers else 204
                status, extra = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Tests read what was received."""

        self._server = _Server(("127.0.0.1", port), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        """The message ids, in the order of their arrival."""
        return [request.headers["webhook-id"] for request in self.received]

    @contextmanager
    def running(self) -> Iterator[Receiver]:
        """Serve while the context lasts."""
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
