"""A guard made of one family's format and one checkpoint. Torch-free.

The families' files hold data and small functions (`Format`); what they have in common is here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from infra.errors import GuardError
from schemas.guards import FidelitySheet, Mode, Rule
from schemas.items import Example, Kind, Label
from schemas.messages import ChunkItem
from schemas.verdicts import CategoriesBy, Verdict
from worker.guards.base import (
    PROBES,
    PromptIds,
    check_kind,
    common_length,
    digest_of,
    no_examples,
    no_such_mode,
    without_extensions,
)
from worker.guards.categories import CategoryQuestion, question_of
from worker.guards.checkpoint import (
    calibration_mark,
    context_tokens_of,
    generation_budget,
    generation_stop_ids,
    temperature_of,
)
from worker.guards.prompt import RESPONSE, Ask, Dialogue, Prompt, turn_field
from worker.guards.reading import (
    MIN_LABEL_MASS,
    Answer,
    Choice,
    from_answer,
    from_logprobs,
    label_mass,
    unreadable,
    worst,
)
from worker.guards.vocabulary import Vocabulary
from worker.guards.windows import MIN_ROOM, fitting_windows

_TWO_TURNS: Final = ("user", "assistant")
_SHAPES: Final = 64
"""Orders of roles in conversations for which the prompt is kept prepared."""


@dataclass(frozen=True)
class Heads:
    """The classification heads for one kind of turn, in the order of their classes: severity and category."""

    risk: tuple[Choice, ...]
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        """Numbers of both heads together."""
        return len(self.risk) + len(self.categories)


@dataclass(frozen=True)
class Format:
    """The format of one family: the kinds of items it judges, its prompts and the reading of its answers.

    `pair` asks about question and response, one prompt per policy, `single` about one text alone; without it a single
    text is a response to an empty question. `read` gets a generated text and
    whether the item was single. Without `choices` there is no score mode.
    With `heads`, for a user's turn and for a model's, nothing is written: they classify at the end of the last turn.
    """

    pair: tuple[Ask, ...]
    read: Callable[[str, bool], Answer]
    single: tuple[Ask, ...] = ()
    choices: tuple[Choice, ...] = ()
    heads: tuple[()] | tuple[Heads, Heads] = ()
    max_new_tokens: int = 128
    any_mass: bool = False
    """A prompt whose labels are unlikely counts too, as long as another prompt of the item is answered."""
    needs_separation: bool = True
    """True to refuse a checkpoint whose template has no control token after the user's text."""
    one_token_choices: bool = False
    """The whole answer is one token: a generation is that pass as well, read with its probabilities."""
    keeps_controls: bool = False
    """The answer is made of control tokens."""
    turn_end_stops: bool = True
    """The control token after the user's text also ends the model's."""
    alone: Kind | None = Kind.PROMPT
    """What `single` asks about, or `pair` with an empty question where there is no `single`; None: only a text whose
    author is not said may stand there."""
    also: tuple[Kind, ...] = ()
    """Kinds that `single` asks about besides a prompt, or `pair` besides a response."""
    conversation: Callable[[Ask, Sequence[str]], Ask] | None = None
    """Puts earlier turns, whose roles it gets, before a request; None: its authors show no conversation of several."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """What may follow an unsafe answer, up to where one category differs from another, and the name of each."""
    verdicts: tuple[str, ...] = ()
    """Beginnings of an answer after which nothing that may follow changes what `read` finds."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways to a verdict that this format has."""
        if self.heads:
            return (Mode.CLASSIFY,)
        return (Mode.SCORE, Mode.GENERATE) if self.choices else (Mode.GENERATE,)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of items that this format has a request for. A single text is put as the one alone that it has."""
        several = (Kind.MESSAGES,) if self.conversation else ()
        asked = {Kind.TEXT, self.alone, *self.also, Kind.PAIR, *several}
        return tuple(kind for kind in Kind if kind in asked)


def as_messages(ask: Ask, roles: Sequence[str]) -> Ask:
    """Put earlier turns before the others of a request to a chat template, each as a message of its own."""
    earlier = tuple((role, turn_field(at)) for at, role in enumerate(roles))
    return replace(ask, messages=(*earlier, *ask.messages))


GENERATOR: Final = Format(
    pair=(Ask((("user", RESPONSE),)),),
    alone=Kind.RESPONSE,
    also=(Kind.PROMPT,),
    read=lambda text, single: unreadable("a generator gives text, no verdict"),  # noqa: ARG005 - Format.read
    max_new_tokens=512,
)
"""The format of a generative model, for `libra data curate`: asked with the item's text as it stands, its answer is the
raw text of an unparseable verdict. So what it writes is settled exactly once, on any device, and moderates nothing."""


class TemplateGuard:
    """One checkpoint asked in its family's format; a `GuardError` where its tokenizer, template or context cannot."""

    def __init__(
        self,
        folder: Path,
        form: Format,
        *,
        name: str,
        model: str,
        sheet: FidelitySheet | None = None,
        context_tokens: int | None = None,
    ) -> None:
        self.name, self.model, self.modes, self.kinds = name, model, form.modes, form.kinds
        self._form, self._sheet, self._folder = form, sheet, folder
        self.one_pass = form.one_token_choices
        self._conversations = lru_cache(maxsize=_SHAPES)(self._conversation)
        self._words = Vocabulary(folder)
        self._asks = {
            False: [Prompt(ask, self._words, folder) for ask in form.pair],
            True: [Prompt(ask, self._words, folder) for ask in form.single or form.pair],
        }
        prompts = [*self._asks[False], *self._asks[True]]
        if form.needs_separation and not all(prompt.separates for prompt in prompts):
            raise GuardError(
                f"the chat template of {folder} has no control token after the user's text, "
                "so a text could pretend to be the answer"
            )
        context = context_tokens_of(folder, context_tokens)
        self.max_new_tokens = min(generation_budget(folder, form.max_new_tokens), context // 4)
        self.label_ids = self._labels(prompts)
        self.category_question = self._ask_category(prompts)
        behind = max(map(len, self.label_ids), default=0)
        if self.category_question:
            behind = max(behind, self.category_question.longest)
        answers = {Mode.SCORE: behind, Mode.GENERATE: self.max_new_tokens, Mode.CLASSIFY: 0}
        self._limits = {mode: context - answers[mode] for mode in self.modes}
        if min(limit - self._overhead(mode) for mode, limit in self._limits.items()) < MIN_ROOM:
            raise GuardError(f"{folder}: a context of {context:,} tokens is too short for the instruction and a text")
        eos = self._words.loaded.eos_token_id
        ends = {prompt.turn_end for prompt in prompts if prompt.turn_end} if form.turn_end_stops else set()
        turn_ends = [self._words.controls[end] for end in sorted(ends)]
        stops = [*([] if eos is None else [eos]), *turn_ends, *generation_stop_ids(folder)]
        self.stop_ids = tuple(dict.fromkeys(stops))
        rows = []
        for prompt in prompts:
            asked = prompt.encode([("", "")])[0]
            for beginning in form.verdicts:
                row = prompt.encode([("", "")], beginning)[0]
                # Where the prompt's last token merges with the answer's first, a model's own answer has other ids.
                if row[: len(asked)] == asked:
                    rows.append(row[len(asked) :])
        self.verdict_ids = without_extensions(rows)
        self._temperature = temperature_of(folder)
        if form.conversation:
            prompts += [*self._conversation(_TWO_TURNS, single=False), *self._conversation(_TWO_TURNS, single=True)]
        texts = [prompt.rendered + "\0" + prompt.ask.prefill for prompt in prompts]
        self.prompt_digest = digest_of(
            *texts,
            *(choice.text for choice in form.choices),
            *(name for heads in form.heads for name in (*(one.text for one in heads.risk), *heads.categories)),
            self._words.digest,
            str(context),
            *([str(sheet.rule), str(sheet.prompt_threshold), str(sheet.response_threshold)] if sheet else ()),
            *calibration_mark(self._temperature),
        )

    def prefix_ids(self, mode: Mode) -> PromptIds:
        """The ids that prompts share whatever their text begins with."""
        if mode not in self.modes:
            return array("i")
        rows = [row for prompt in self._asks[False] for row in self._encode(prompt, [(p, p) for p in PROBES], mode)]
        return rows[0][: common_length(rows)]

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
        """Per item one prompt per policy and window; nothing is cut off."""
        if mode not in self.modes:
            raise no_such_mode(self, mode)
        limit = self._limits[mode]
        found = []
        for item in items:
            check_kind(self, item)
            ask = self._asking(item, mode)
            prompts = ask([item.dialogue])
            if max(map(len, prompts)) > limit:
                # The earlier turns stand before every window of the last ones.
                room = limit - (max(map(len, ask([("", "")]))) if item.history else self._overhead(mode))
                if room < MIN_ROOM:
                    raise GuardError(f"{self.name}: a conversation's earlier turns do not fit its context")
                question, response = item.dialogue
                prompts = fitting_windows(
                    item.model_copy(update={"question": question, "response": response}),
                    ask,
                    limit=limit,
                    room=room,
                    token_starts=self._words.token_starts,
                    name=self.name,
                )
            found.append(prompts)
        return found

    def with_examples(self, examples: Sequence[Example]) -> TemplateGuard:  # noqa: ARG002 - the Guard protocol's signature
        """No format of its kind has a place for examples."""
        raise no_examples(self)

    def read_scores(self, seq: int, windows: Sequence[Sequence[float]], *, single: bool = False) -> Verdict:
        """The worst prompt's verdict; `windows` holds log-probabilities of the choices, or of all heads' classes."""
        if self._form.heads:
            return worst([self._from_heads(seq, row, single=single) for row in windows])
        return worst(self._verdicts(seq, windows, single=single))

    def _from_heads(self, seq: int, row: Sequence[float], *, single: bool) -> Verdict:
        """The verdict of the heads for the last turn's author, which name a category in the same pass."""
        assert self._form.heads  # noqa: S101 - the caller has seen it
        of_user, of_model = self._form.heads
        heads, begin = (of_user, 0) if single else (of_model, of_user.width)
        end = begin + len(heads.risk)
        rule = self._sheet.rule if self._sheet else Rule.LIKELIEST
        verdict = from_logprobs(seq, heads.risk, row[begin:end], rule=rule, temperature=self._temperature)
        verdict = verdict.model_copy(update={"label_mass": None})  # heads have no other classes
        if verdict.label is not Label.UNSAFE:
            return verdict
        of_category = row[end : end + len(heads.categories)]
        name = heads.categories[max(range(len(of_category)), key=lambda at: of_category[at])]
        return verdict.model_copy(update={"categories": (name, *verdict.categories)})

    def category_prompt(
        self, prompts: Sequence[PromptIds], windows: Sequence[Sequence[float]], *, single: bool = False
    ) -> PromptIds | None:
        """The prompt at whose end the category of an unsafe text stands, if the format has such a place."""
        if self.category_question is None:
            return None
        return self.category_question.prompt(prompts, windows, self._verdicts(0, windows, single=single))

    def _verdicts(self, seq: int, windows: Sequence[Sequence[float]], *, single: bool) -> list[Verdict]:
        """A verdict for each prompt."""
        asks = self._asks[single]
        answered = any(label_mass(row) >= MIN_LABEL_MASS for row in windows)
        return [
            from_logprobs(
                seq,
                self._form.choices,
                row,
                rule=self._sheet.rule if self._sheet else Rule.TOTAL,
                threshold=self._sheet.threshold(single=single) if self._sheet else 0.5,
                policy=asks[at % len(asks)].ask.policy,
                temperature=self._temperature,
                min_mass=0.0 if self._form.any_mass and answered else MIN_LABEL_MASS,
            )
            for at, row in enumerate(windows)
        ]

    def read_ids(self, seq: int, windows: Sequence[Sequence[int]], *, single: bool = False) -> Verdict:
        """The worst prompt's verdict, parsed from what the model wrote."""
        asks = self._asks[single]
        found = []
        for at, ids in enumerate(windows):
            text = self._words.decode(ids, keep_controls=self._form.keeps_controls)
            verdict = from_answer(seq, self._form.read(text, single), text)
            policy = asks[at % len(asks)].ask.policy
            if policy and verdict.label is Label.UNSAFE:
                verdict = verdict.model_copy(update={"categories": (policy, *verdict.categories)})
            found.append(verdict)
        return worst(found)

    def _asking(self, item: ChunkItem, mode: Mode) -> Callable[[Sequence[tuple[str, str]]], list[PromptIds]]:
        """From windows of an item's last turns to prompts, its earlier turns in each.

        All policies of the first window, then of the second: their place says which policy it was.
        """
        prompts = self._asks[item.single]
        if item.history:
            prompts = self._conversations(tuple(turn.role for turn in item.history), single=item.single)
        earlier = tuple(turn.content for turn in item.history)

        def ask(windows: Sequence[tuple[str, str]]) -> list[PromptIds]:
            dialogues = [(*window, *earlier) for window in windows]
            by_policy = [self._encode(prompt, dialogues, mode) for prompt in prompts]
            return [row for window in zip(*by_policy, strict=True) for row in window]

        return ask

    def _conversation(self, roles: tuple[str, ...], *, single: bool) -> list[Prompt]:
        """The requests about the last of several turns; made once for each order of roles."""
        put = self._form.conversation
        assert put is not None  # noqa: S101 - the kind was checked
        try:
            return [Prompt(put(prompt.ask, roles), self._words, self._folder) for prompt in self._asks[single]]
        except GuardError as error:
            said = ", ".join((*roles, "user" if single else "user, assistant"))
            raise GuardError(f"{self.name} cannot judge a conversation of the turns {said}: {error}") from error

    def _encode(self, prompt: Prompt, dialogues: Sequence[Dialogue], mode: Mode) -> list[PromptIds]:
        if mode is Mode.GENERATE:
            return prompt.encode(dialogues)
        if mode is Mode.CLASSIFY:
            # Read at the control token that ends the last turn, whatever the template writes behind it.
            behind = len(self._words.batch_ids([prompt.pieces[-1]])[0]) if prompt.pieces[-1] else 0
            return [row[: len(row) - behind] for row in prompt.encode(dialogues)]
        # A label is cut off again so that it and the text before it merge as they do in a whole answer.
        label = self.label_ids[0]
        rows = prompt.encode(dialogues, prompt.ask.prefill + self._form.choices[0].text)
        if any(tuple(row[-len(label) :]) != label for row in rows):
            raise GuardError(f"the tokenizer of {self.name} merges its answer with the text before it")
        return [row[: -len(label)] for row in rows]

    def _overhead(self, mode: Mode) -> int:
        return max(
            len(self._encode(prompt, [("", "")], mode)[0]) for prompts in self._asks.values() for prompt in prompts
        )

    def _labels(self, prompts: Sequence[Prompt]) -> tuple[tuple[int, ...], ...]:
        """Return each choice's continuation after their common beginning, independent of the text before it."""
        if not self._form.choices:
            return ()
        seen = set()
        for prompt in prompts:
            for probe in PROBES[:1] if prompt.separates else PROBES:
                texts = [prompt.ask.prefill + choice.text for choice in self._form.choices]
                rows = [prompt.encode([(probe, probe)], text)[0] for text in texts]
                shared = common_length(rows)
                seen.add(tuple(tuple(row[shared:]) for row in rows))
        labels = seen.pop()
        if seen or not all(labels) or len(set(labels)) < len(labels):
            raise GuardError(f"the tokenizer of {self.name} cannot tell its labels apart")
        if self._form.one_token_choices and any(len(label) > 1 for label in labels):
            raise GuardError(f"the labels of {self.name} are not one token each; is it another model's tokenizer?")
        return labels

    def _ask_category(self, prompts: Sequence[Prompt]) -> CategoryQuestion | None:
        """The forced choice between the categories; None where the format has none, or this tokenizer cannot ask it."""
        form, found = self._form, list[CategoryQuestion | None]()
        if not (form.categories and form.choices):
            return None
        for prompt in prompts:
            for probe in PROBES[:1] if prompt.separates else PROBES:
                asked = self._encode(prompt, [(probe, probe)], Mode.SCORE)[0]
                continuations = {}
                for at, choice in enumerate(form.choices):
                    if choice.label is Label.UNSAFE:
                        answers = [f"{prompt.ask.prefill}{choice.text}{words}" for words in form.categories]
                        rows = [prompt.encode([(probe, probe)], answer)[0] for answer in answers]
                        # The model wrote the label's own ids: a category that would merge with them is never next.
                        before = [*asked, *self.label_ids[at]]
                        if any(row[: len(before)].tolist() != before for row in rows):
                            return None
                        continuations[at] = [row[len(asked) :] for row in rows]
                found.append(question_of(continuations, list(form.categories.values()), CategoriesBy.FORCED_CHOICE))
        return found[0] if all(question == found[0] for question in found) else None
