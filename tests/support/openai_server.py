"""A real OpenAI-compatible server for the tests: HTTP in front of the real TransformersEngine.

What it offers can be narrowed to that of any of its bigger brothers, and it can be told to fail.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from worker.device.engines.transformers import TransformersEngine

Fault = tuple[int, dict[str, str]]


class BadRequestError(Exception):
    """Becomes a 400."""


@dataclass
class TinyServer:
    """One checkpoint, served. The defaults are vLLM's; SGLang, TGI, Ollama and strict servers are narrower.

    `faults` are answered first, one request each (status, headers); `refuses` are ids no prompt may hold,
    `breaks_on` ids that make it answer 500; while `gate` is not set, nothing is answered.
    """

    folder: Path
    takes_ids: bool = True
    takes_unknown: bool = True
    names_tokens_by_id: bool = True
    returns_ids: bool = True
    max_logprobs: int = 20
    binds: tuple[str, ...] = ("structured_outputs",)
    wraps: bool = False
    model: str = "tiny"
    max_model_len: int | None = None
    api_key: str | None = None
    refuses: frozenset[int] = frozenset()
    breaks_on: frozenset[int] = frozenset()
    faults: list[Fault] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.engine = TransformersEngine(self.folder)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.gate = threading.Event()
        self.gate.set()
        self._at_once = 0
        self._lock = threading.Lock()
        self._model_lock = threading.Lock()

    def models(self) -> dict[str, Any]:
        return {"data": [{"id": self.model, "max_model_len": self.max_model_len}]}

    def entered(self) -> None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)

    def left(self) -> None:
        with self._lock:
            self._at_once -= 1

    def next_fault(self) -> Fault | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion.

        Raises:
            BadRequestError: the body is not for this server.
        """
        with self._lock:
            self.bodies.append(body)
        prompt = self._prompt(body)
        if self.refuses.intersection(prompt):
            raise BadRequestError("a token that is not allowed")
        with self._model_lock:
            choice = self._choice(body, prompt)
        return {
            "choices": [{"index": 0, **choice}],
            "usage": {"prompt_tokens": len(prompt) + 7 * self.wraps, "completion_tokens": 1},
        }

    def _prompt(self, body: dict[str, Any]) -> array[int]:
        known = {"model", "prompt", "temperature", "max_tokens", "logprobs", "stop"}
        if not self.takes_unknown and (unknown := set(body) - known):
            raise BadRequestError(f"unknown fields {sorted(unknown)}")
        if body["model"] != self.model:
            raise BadRequestError("no such model")
        if isinstance(body["prompt"], str):
            return array("i", self.tokenizer.encode(body["prompt"]).ids)
        if not self.takes_ids:
            raise BadRequestError("prompt: a string is expected")
        return array("i", body["prompt"])

    def _choice(self, body: dict[str, Any], prompt: array[int]) -> dict[str, Any]:
        if words := self._bound_words(body):
            encoded = [self._ids(word) for word in words]
            (scores,) = self.engine.score([prompt], encoded)
            ids: Sequence[int] = encoded[max(range(len(words)), key=scores.__getitem__)]
        else:
            stops = [*body.get("stop_token_ids", ()), *(self._ids(word)[0] for word in body.get("stop", ()))]
            (ids,) = self.engine.generate([prompt], max_new_tokens=body["max_tokens"], stop_ids=stops)
        choice: dict[str, Any] = {"text": self.tokenizer.decode(list(ids), skip_special_tokens=True), "logprobs": None}
        if self.returns_ids and body.get("return_token_ids"):
            choice["token_ids"] = list(ids)
        if body.get("logprobs"):
            choice["logprobs"] = self._logprobs(body, prompt)
        return choice

    def _bound_words(self, body: dict[str, Any]) -> list[str]:
        if "structured_outputs" in self.binds and "structured_outputs" in body:
            return list(body["structured_outputs"]["choice"])
        if "guided_choice" in self.binds and "guided_choice" in body:
            return list(body["guided_choice"])
        if "regex" in self.binds and "regex" in body:
            return [re.sub(r"\\(.)", r"\1", word) for word in body["regex"][1:-1].split("|")]
        return []

    def _logprobs(self, body: dict[str, Any], prompt: array[int]) -> dict[str, Any] | None:
        wanted = body["logprobs"]
        if not self.max_logprobs:
            return None
        if wanted > self.max_logprobs:
            raise BadRequestError(f"logprobs: at most {self.max_logprobs}")
        vocabulary = self.tokenizer.get_vocab_size()
        (row,) = self.engine.score([prompt], [(token,) for token in range(vocabulary)])
        best = sorted(range(vocabulary), key=row.__getitem__, reverse=True)[:wanted]
        by_id = self.names_tokens_by_id and body.get("return_tokens_as_token_ids")
        names = [f"token_id:{token}" if by_id else self.tokenizer.decode([token]) for token in best]
        return {"top_logprobs": [dict(zip(names, (row[token] for token in best), strict=True))]}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tiny: TinyServer

    def do_GET(self) -> None:
        self._answer(200, self.tiny.models()) if self.path == "/v1/models" else self._answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tiny = self.tiny
        tiny.entered()
        try:
            tiny.gate.wait(30)
            if tiny.api_key and self.headers.get("Authorization") != f"Bearer {tiny.api_key}":
                self._answer(401, {"error": {"message": "wrong key"}})
            elif fault := tiny.next_fault():
                self._answer(fault[0], {"error": {"message": "told to fail"}}, fault[1])
            elif tiny.breaks_on.intersection(body["prompt"]):
                self._answer(500, {"error": {"message": "broke"}})
            else:
                self._answer(200, tiny.complete(body))
        except BadRequestError as error:
            self._answer(400, {"error": {"message": str(error)}})
        finally:
            tiny.left()

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            return  # the client did not wait

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@contextmanager
def serving_tiny(folder: Path, **options: Any) -> Iterator[TinyServer]:
    """The server on a free port of this machine; gone when the context ends."""
    tiny = TinyServer(folder, **options)
    handler = type("Handler", (_Handler,), {"tiny": tiny})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    tiny.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield tiny
    finally:
        tiny.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
