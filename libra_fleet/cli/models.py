"""The models that a person names for `libra eval`: a guard, a folder, a hub id, BASE+ADAPTER, a server's address.

Each becomes a guard's name, what a worker is to load or to ask, and the words in which it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from infra.errors import ServerError, UsageError
from infra.guard_catalogue import GUARDS
from libra_fleet.cli.options import GuardChoice, absolute, did_you_mean, model_named
from schemas.guards import Family
from worker.guards.checkpoint import ADAPTER, read_json
from worker.guards.family import Words, words_of
from worker.guards.location import absolute_location, parts_of

_SERVER_TIMEOUT_S: Final = 10.0
_SCHEMES: Final = ("http://", "https://")
_DEMO: Final = "demo"


@dataclass(frozen=True)
class Model:
    """A model: its guard, the words in which it is asked, `family` where they were named, and a worker's options."""

    guard: GuardChoice
    words: Words
    family: str | None = None
    options: tuple[str, ...] = ()

    @property
    def is_server(self) -> bool:
        """True if a server runs it."""
        return "--base-url" in self.options


def split_data(arguments: Sequence[str], data: str | None) -> tuple[Sequence[str], str]:
    """The models among the arguments, and the data set: named, or the last argument if it is no model, or `demo`."""
    if data is not None:
        return arguments, data
    last = arguments[-1]
    if len(arguments) > 1 and not _is_model(last):
        return arguments[:-1], last
    return arguments, _DEMO


def _is_model(word: str) -> bool:
    folder = Path(word).expanduser()
    if folder.is_dir():
        return any((folder / name).is_file() for name in ("config.json", ADAPTER))
    if word.startswith(_SCHEMES):
        return True
    known = model_named(word)
    return known is not None and (known.checkpoint is None or parts_of(word).adapter is not None)


def gathered_models(words: Iterable[str], family: str | None, tokenizer: str | None) -> list[Model]:
    """The models that these words name, each under a name of its own.

    Raises:
        UsageError: a word names none.
        ServerError: a server does not answer.
    """
    models: list[Model] = []
    for word in words:
        model = model_of(word, family, tokenizer)
        taken = [one.guard.name for one in models]
        name = next(
            name for name in (model.guard.name, *(f"{model.guard.name}-{n}" for n in range(2, 99))) if name not in taken
        )
        if name != model.guard.name and model.guard.checkpoint is None:
            raise UsageError(f"{word} is named twice")
        models.append(replace(model, guard=model.guard._replace(name=name)))
    if tokenizer is not None and not any(model.is_server for model in models):
        raise UsageError("--tokenizer is that of a server's model; a checkpoint has its own")
    return models


def model_of(word: str, family: str | None = None, tokenizer: str | None = None) -> Model:
    """The model that one word names."""
    if word.startswith(_SCHEMES):
        return _served(word, family, tokenizer)
    guard = model_named(word)
    if guard is None and (equals := word.partition("="))[2]:
        guard = GuardChoice(
            equals[0], str(Path(equals[2]).expanduser().resolve()) if Path(equals[2]).exists() else equals[2]
        )
    if guard is None:
        hint = did_you_mean(word, GUARDS) or "; a folder, a hub id (owner/name) or a server's address is one, too"
        raise UsageError(f"no model {word!r}{hint}")
    if guard.checkpoint and (adapter := Path(guard.checkpoint) / ADAPTER).is_file():
        base = str(read_json(adapter).get("base_model_name_or_path") or "")
        if not base:
            raise UsageError(f"{word} is an adapter that does not name its base: BASE+{word}")
        guard = GuardChoice(guard.name, absolute_location(f"{base}+{guard.checkpoint}"))
    return Model(guard, _words(guard, family), family)


def _words(guard: GuardChoice, family: str | None) -> Words:
    card = GUARDS.get(guard.name)
    if card and family is None:
        return Words(card.family, card, "the guard's own")
    if guard.checkpoint == Family.FAKE:
        return Words(Family.FAKE, GUARDS[Family.FAKE], "the guard's own")
    return words_of(guard.checkpoint or (card and card.hub_id) or guard.name, family)


def _served(address: str, family: str | None, tokenizer: str | None) -> Model:
    """The one model that a server runs, or the one that stands behind a # in the address."""
    base_url, _, wanted = address.partition("#")
    base_url = base_url.rstrip("/")
    if base_url.count("/") == 2:
        base_url += "/v1"
    served = _models_of(base_url)
    if wanted and wanted not in served:
        raise UsageError(f"{base_url} serves {', '.join(served)}, not {wanted}")
    if not wanted and len(served) != 1:
        raise UsageError(f"{base_url} serves {', '.join(served) or 'no model'}; choose with {base_url}#MODEL")
    model = wanted or served[0]
    guard = model_named(model) or GuardChoice(model.rpartition("/")[2] or "model", None)
    if tokenizer is not None:
        guard = GuardChoice(guard.name, absolute(tokenizer))
    if guard.checkpoint is None and guard.name not in GUARDS:
        raise UsageError(f"{base_url} serves {model}, which is no hub id: --tokenizer names its folder or hub id")
    words = words_of(model, family) if family is None and guard.name not in GUARDS else _words(guard, family)
    if words.card is None and guard.checkpoint:
        words = words_of(guard.checkpoint, family)
    return Model(guard, words, family, ("--engine", "openai", "--base-url", base_url, "--model", model))


def _models_of(base_url: str) -> list[str]:
    import httpx2  # noqa: PLC0415 - only a server is asked

    try:
        answer = httpx2.Client(trust_env=False, timeout=_SERVER_TIMEOUT_S).get(f"{base_url}/models")
        answer.raise_for_status()
        return [str(one["id"]) for one in answer.json()["data"]]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{base_url}/models: no list of models ({type(error).__name__}: {error})") from error
