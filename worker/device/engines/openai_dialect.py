"""The abilities of an OpenAI-compatible server, found out by asking it once when the engine starts.

Servers differ in what a prompt may be (ids or text), in whether they give log-probabilities, of how many
tokens and by which names, and in how an answer is bound to a choice. None of it is announced, and most of
them ignore what they do not know: so each ability is tried, and its effect looked at.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from infra.errors import GuardError
from worker.device.engines.openai_http import Endpoint, Refused
from worker.guards.vocabulary import backend_tokenizer

EXTRAS: Final = {"return_tokens_as_token_ids": True, "return_token_ids": True}
"""Beyond the protocol: vLLM names tokens by id; servers that do not know these ignore them, mostly."""
TOPS: Final = (20, 5)
"""Candidates per token that may be asked for: vLLM's default limit, then the protocol's own."""
NONSENSE: Final = "q7-libra"
"""A choice that no model makes unless the server binds it."""

_TOKEN_ID: Final = re.compile(r"token_id[:_](\d+)")
_BROKEN_CHARACTER: Final = "\ufffd"

_BOUNDS: Final[dict[str, Callable[[Sequence[str]], dict[str, object]]]] = {
    "structured_outputs": lambda words: {"structured_outputs": {"choice": list(words)}},  # vLLM
    "guided_choice": lambda words: {"guided_choice": list(words)},  # vLLM before 0.12
    "regex": lambda words: {"regex": f"({'|'.join(map(re.escape, words))})"},  # SGLang
}


class PromptText:
    """Ids to text and back by the guard's own tokenizer, control tokens included."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Tokenizer = backend_tokenizer(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def of(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def ids(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def exactly(self, ids: array[int]) -> str:
        """The text that a server with the same tokenizer reads as exactly these ids.

        Raises:
            Refused: there is none: a user wrote what reads as a control token, say.
        """
        wanted = ids.tolist()
        # Many tokenizers put a beginning-of-text id before every text by themselves.
        for start in (0, 1):
            text = self.of(wanted[start:])
            if self._tokenizer.encode(text, add_special_tokens=True).ids == wanted:
                return text
        raise Refused("the server takes text only, and as text this prompt would be read as other tokens")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The way to ask a server. `top` is 0 where it gives no log-probabilities; `bound` is how to bind an answer."""

    model: str
    context_tokens: int | None = None
    as_ids: bool = True
    extras: bool = True
    top: int = 0
    bound: str | None = None

    @property
    def scoring(self) -> str:
        """The way verdicts are scored, for the fingerprint."""
        return "logprobs" if self.top else "choice" if self.bound else "parse"

    def body(self, prompt: array[int], text: PromptText, **options: object) -> dict[str, object]:
        """A request for the greedy completion of a prompt.

        Raises:
            Refused: the prompt cannot be put into words for this server.
        """
        return {
            "model": self.model,
            "prompt": prompt.tolist() if self.as_ids else text.exactly(prompt),
            "temperature": 0,
            **(EXTRAS if self.extras else {}),
            **options,
        }

    def binding(self, words: Sequence[str]) -> dict[str, object]:
        """The option that makes the answer one of these words, if the server has one."""
        return _BOUNDS[self.bound](words) if self.bound else {}


def agree(
    endpoint: Endpoint, model: str | None, text: PromptText, probe: array[int], labels: Sequence[Sequence[int]]
) -> Dialect:
    """Find out how to ask a server. `model` is its own name for it; none: the only one it serves.

    `probe` is a prompt as the guard makes them; without `labels` the guard only generates.

    Raises:
        GuardError: it serves no such model, or cannot be asked with this guard's prompts.
        DeviceLost: it cannot be reached.
    """
    dialect = _as_prompted(endpoint, _served(endpoint, model), text, probe)
    if not labels:
        return dialect
    # The candidates whose log-probabilities it gives, if the labels are among them; else what binds an answer.
    for top in TOPS:
        body = dialect.body(probe, text, max_tokens=1, logprobs=top)
        try:
            found = candidates(first_choice(endpoint.ask("/completions", body)))
        except Refused:
            continue
        # By text, every token of the labels must have one of its own (a token may be part of a character).
        by_id = all(isinstance(name, int) for name in found)
        tokens = {token for label in labels for token in label}
        texts = {text.of([token]) for token in tokens}
        distinct = len(texts) == len(tokens) and not any(_BROKEN_CHARACTER in word for word in texts)
        if len(found) > 1 and (by_id or distinct):
            return replace(dialect, top=top)
        break
    for name, binding in _BOUNDS.items():
        body = dialect.body(probe, text, max_tokens=4 * len(NONSENSE), **binding([NONSENSE]))
        try:
            choice = first_choice(endpoint.ask("/completions", body))
        except Refused:
            continue
        if str(choice.get("text", "")).strip() == NONSENSE:
            return replace(dialect, bound=name)
    return dialect


def first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one completion of an answer.

    Raises:
        Refused: there is none.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Refused("the server's answer has no completion")
    return choices[0]


def candidates(choice: Mapping[str, Any]) -> dict[int | str, float]:
    """Log-probabilities of the likeliest first tokens, by id where the server gives ids, else by text."""
    found = choice.get("logprobs") or {}
    if found.get("content"):  # llama.cpp answers in the chat endpoint's form
        listed = [(entry.get("id", entry["token"]), entry["logprob"]) for entry in found["content"][0]["top_logprobs"]]
    else:
        listed = list(((found.get("top_logprobs") or [{}])[0] or {}).items())
    likely: dict[int | str, float] = {}
    for name, logprob in listed:
        numbered = _TOKEN_ID.fullmatch(name) if isinstance(name, str) else None
        likely[int(numbered[1]) if numbered else name] = float(logprob)
    return likely


def _served(endpoint: Endpoint, model: str | None) -> Dialect:
    """The model's name and context at the server."""
    try:
        listed = endpoint.ask("/models").get("data") or []
        served = {str(entry["id"]): entry for entry in listed}
    except (Refused, KeyError, TypeError, AttributeError) as error:
        if model:
            return Dialect(model)
        raise GuardError(f"{endpoint.url} does not list its models: name one with --model ({error})") from error
    names = ", ".join(served) or "none"
    if model is None and len(served) != 1:
        raise GuardError(f"{endpoint.url} serves {names}: choose one with --model")
    name = model or next(iter(served))
    if name not in served:
        raise GuardError(f"{endpoint.url} does not serve {name!r}, but {names}")
    context = served[name].get("max_model_len")
    return Dialect(name, context if isinstance(context, int) else None)


def _as_prompted(endpoint: Endpoint, served: Dialect, text: PromptText, probe: array[int]) -> Dialect:
    """The dialect with the form of prompt that the server takes."""
    problem: Refused | None = None
    for as_ids, extras in ((True, True), (True, False), (False, True), (False, False)):
        dialect = replace(served, as_ids=as_ids, extras=extras)
        try:
            answer = endpoint.ask("/completions", dialect.body(probe, text, max_tokens=1))
            first_choice(answer)
        except Refused as error:
            problem = problem or error
            continue
        read = (answer.get("usage") or {}).get("prompt_tokens")
        if isinstance(read, int) and read > len(probe):
            raise GuardError(
                f"{endpoint.url} read {read} tokens where {len(probe)} were sent: it wraps prompts in a template of "
                "its own, or has another tokenizer (Ollama: give the model TEMPLATE {{ .Prompt }})"
            )
        return dialect
    raise GuardError(f"{endpoint.url} cannot complete this guard's prompts: {problem}")
