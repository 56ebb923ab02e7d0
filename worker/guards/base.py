"""The contract between a guard and the rest of the worker. Torch-free.

A guard knows language, prompts and labels; it knows nothing about tensors, devices or queues.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from infra.errors import GuardError
from infra.guard_sheets import cannot_judge
from schemas.guards import Mode
from schemas.items import Example, Kind
from schemas.messages import ChunkItem
from schemas.verdicts import Verdict

if TYPE_CHECKING:
    from worker.guards.categories import CategoryQuestion

PromptIds: TypeAlias = "array[int]"
"""Token ids of one prompt, as a C int array (typecode "i"): it crosses the device socket as raw bytes."""


PROBES: Final = ("", "你", "word", "7", " ", "\n", "“", "，", "(", '"', "!", "😀", "é")
"""Beginnings of a text, each of which may merge otherwise with the last tokens of what stands before it."""


class Guard(Protocol):
    """One guard model's language half."""

    @property
    def name(self) -> str:
        """The registry name, or the name the worker was started with."""

    @property
    def model(self) -> str:
        """Hub id or folder name of the checkpoint, for the fingerprint."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways to a verdict that this guard has, the usual one first."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of items that it can judge; a text and a pair are always among them."""

    @property
    def prompt_digest(self) -> str:
        """Short hash over everything that shapes a prompt: template, instruction, labels, tokenizer."""

    @property
    def label_ids(self) -> tuple[tuple[int, ...], ...]:
        """Continuations whose probability is read in score mode, in the order the guard expects back."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""

    @property
    def verdict_ids(self) -> tuple[tuple[int, ...], ...]:
        """Sequences in a generation after which nothing can change its verdict; () if it may come late."""

    @property
    def max_new_tokens(self) -> int:
        """Decoding budget of generate mode."""

    @property
    def one_pass(self) -> bool:
        """True where a whole generation is one label, so that the pass that writes it also gives its probability."""

    @property
    def category_question(self) -> CategoryQuestion | None:
        """How mode score finds the category of an unsafe text; None where its labels carry it or it has none."""

    def prefix_ids(self, mode: Mode) -> PromptIds:
        """The ids every prompt of this mode begins with (may be empty): the shared KV prefix."""

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
        """Prompts per item: one or several per overlapping window of its content.

        Raises:
            GuardError: the guard has no such mode, or an item cannot be asked about: it is of a kind that the
                guard cannot judge, or does not fit.
        """

    def with_examples(self, examples: Sequence[Example]) -> Guard:
        """The same guard, in whose prompts these examples stand before each item; another prompt digest.

        Raises:
            GuardError: it has no form for worked examples, or they leave no room for a text.
        """

    def read_scores(self, seq: int, windows: Sequence[Sequence[float]], *, single: bool = False) -> Verdict:
        """A verdict from natural-log probabilities, a row per prompt: of `label_ids` or of a classifier's classes.

        `single`: the item was one text that answers nothing (`ChunkItem.single`).
        """

    def category_prompt(
        self, prompts: Sequence[PromptIds], windows: Sequence[Sequence[float]], *, single: bool = False
    ) -> PromptIds | None:
        """The prompt at whose end `category_question` is asked, from an item's prompts and what `read_scores` gets.

        None where there is nothing to ask: the item is not unsafe, or the guard has no such question.
        """

    def read_ids(self, seq: int, windows: Sequence[Sequence[int]], *, single: bool = False) -> Verdict:
        """A verdict from generated ids (without the prompt), one row per prompt."""


def pass_of(guard: Guard, mode: Mode) -> Mode:
    """Return the pass that a device is asked for: the probabilities of what it would write, where that is one label."""
    return Mode.SCORE if mode is Mode.GENERATE and guard.one_pass else mode


def no_such_mode(guard: Guard, mode: Mode) -> GuardError:
    """Return the error for a mode that a guard does not have."""
    return GuardError(
        f"{guard.name} has no mode {mode.value}; it has {', '.join(known.value for known in guard.modes)}"
    )


def check_kind(guard: Guard, item: ChunkItem) -> None:
    """Refuse an item of a kind that the guard cannot judge, rather than judge it as another (GuardError)."""
    if item.kind not in guard.kinds:
        raise GuardError(cannot_judge(guard.name, item.kind, guard.kinds))


def no_examples(guard: Guard) -> GuardError:
    """Return the error for worked examples given to a guard that has no form for them."""
    return GuardError(f"{guard.name} has no form for worked examples")


def common_length(rows: Sequence[PromptIds]) -> int:
    """Return the number of leading ids that all rows share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def without_extensions(sequences: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The sequences less those that begin with another one, in the order given."""
    distinct = list(dict.fromkeys(map(tuple, sequences)))
    known = set(distinct)
    return tuple(row for row in distinct if not any(row[:end] in known for end in range(1, len(row))))


def digest_of(*parts: str) -> str:
    """16 hex characters over all parts."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
