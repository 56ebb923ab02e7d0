"""Any sequence-classification checkpoint (a COLD detector, say): one text in, classes out.

The text is whatever stands alone, a prompt or a response; of a pair it is the response, and the question is not
read. Classes are named by the config's `id2label`; what they mean is said by a map beside the checkpoint
(`class_map.py`), by the card, or by names that say themselves that they mean safe.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from infra.errors import GuardError
from schemas.guards import Mode
from schemas.items import Example, Kind, Label
from schemas.messages import ChunkItem
from schemas.verdicts import Outcome, Verdict
from worker.guards.base import PromptIds, check_kind, digest_of, no_examples, no_such_mode
from worker.guards.checkpoint import calibration_mark, context_tokens_of, read_json, temperature_of
from worker.guards.class_map import LONGEST, ClassMap, ClassMeaning, read_class_map
from worker.guards.reading import shares, worst
from worker.guards.vocabulary import Vocabulary
from worker.guards.windows import fitting_windows

SAFE_NAMES: Final = frozenset(
    {"safe", "benign", "normal", "neutral", "ok", "clean", "安全", "不违规", "正常", "无风险", "非冒犯"}
    | {
        f"{no}{sep}{word}"
        for no in ("non", "not")
        for sep in "-_ "
        for word in ("offensive", "toxic", "harmful", "hate")
    }
)
"""Class names that say of themselves that they mean safe."""
_POSITIONS_AFTER_PADDING: Final = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "camembert",
        "longformer",
        "mpnet",
        "data2vec-text",
        "ibert",
        "luke",
        "mluke",
        "esm",
    }
)
"""Model types whose positions count on from their padding id: so many fewer can be used than the config says."""
_UNSAFE_FROM: Final = 0.5
_SAMPLE: Final = "你好 world"


class SequenceClassifierGuard:
    """One checkpoint with a classification head.

    Raises:
        GuardError: no class is known to mean safe, or its tokenizer writes special tokens in between.
    """

    modes: Final = (Mode.CLASSIFY,)
    one_pass: Final = False
    category_question: Final = None
    kinds: tuple[Kind, ...] = (Kind.TEXT, Kind.PROMPT, Kind.RESPONSE, Kind.PAIR)
    label_ids: Final[tuple[tuple[int, ...], ...]] = ()
    stop_ids: Final[tuple[int, ...]] = ()
    verdict_ids: Final[tuple[tuple[int, ...], ...]] = ()
    max_new_tokens: Final = 0

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        model: str,
        safe_labels: Sequence[str] = (),
        context_tokens: int | None = None,
    ) -> None:
        self.name, self.model = name, model
        self._words = Vocabulary(folder)
        config = read_json(folder / "config.json")
        named = _id2label(config)
        try:
            self._classes = tuple(str(named[str(at)]) for at in range(len(named)))
        except KeyError as error:
            raise GuardError(f"{folder}/config.json: id2label does not number its classes from 0") from error
        said = read_class_map(folder)
        self.multi_label = is_multi_label(config) if said is None or said.multi_label is None else said.multi_label
        self._threshold = said.threshold if said else _UNSAFE_FROM
        if said:
            self.kinds = tuple(kind for kind in Kind if kind in {Kind.TEXT, *said.kinds})
        self._meanings = _meanings(folder, self._classes, said or _by_name(self._classes, safe_labels))
        self._safe = frozenset(at for at, meaning in enumerate(self._meanings) if meaning.is_safe)
        # In multi-label, safe is what no class claims.
        if len(self._safe) == len(self._classes) or not (self._safe or self.multi_label):
            raise GuardError(
                f"{folder}/config.json: none of its classes ({', '.join(self._classes)}) is known to mean "
                f"{'unsafe' if self._safe else 'safe'}; name it in id2label, for example as 'safe', or say what each "
                "means in a file guard.yaml beside it (docs/guards.md)"
            )
        if not self.multi_label and any(meaning.threshold is not None for meaning in self._meanings):
            raise GuardError(f"{folder}: a class has a threshold of its own only where multi_label is true")
        # The tokenizer's own ids around a text, such as [CLS] and [SEP].
        found = self._words.full.encode(_SAMPLE, add_special_tokens=True)
        text = self._words.full.encode(_SAMPLE, add_special_tokens=False).ids
        begin = next((n for n in range(len(found.ids)) if found.ids[n : n + len(text)] == text), None)
        if begin is None or self._words.text_ids(_SAMPLE).tolist() != text:
            raise GuardError(f"the tokenizer of {folder} writes special tokens in a way that is not supported")
        self._head, self._tail = array("i", found.ids[:begin]), array("i", found.ids[begin + len(text) :])
        padded = str(config.get("model_type", "")) in _POSITIONS_AFTER_PADDING
        unusable = int(config.get("pad_token_id", 1)) + 1 if padded else 0
        self._limit = context_tokens_of(folder, context_tokens) - unusable
        self._temperature = temperature_of(folder)
        self.prompt_digest = digest_of(
            self._words.digest,
            *self._classes,
            *map(str, sorted(self._safe)),
            str(self._limit),
            *([said.model_dump_json()] if said else ()),
            *calibration_mark(self._temperature),
        )

    def prefix_ids(self, mode: Mode) -> PromptIds:  # noqa: ARG002 - the Guard protocol's signature
        """Nothing is shared: an encoder has no KV cache."""
        return array("i")

    def render(self, items: Sequence[ChunkItem], mode: Mode) -> list[list[PromptIds]]:
        """The response between the tokenizer's own special tokens, in windows where it is long."""
        if mode not in self.modes:
            raise no_such_mode(self, mode)
        found = []
        for item in items:
            check_kind(self, item)
            prompts = self._encode([item.dialogue])
            if len(prompts[0]) > self._limit:
                prompts = fitting_windows(
                    item.model_copy(update={"question": "", "response": item.dialogue[1]}),
                    self._encode,
                    limit=self._limit,
                    room=self._limit - len(self._head) - len(self._tail),
                    token_starts=self._words.token_starts,
                    name=self.name,
                )
            found.append(prompts)
        return found

    def with_examples(self, examples: Sequence[Example]) -> SequenceClassifierGuard:  # noqa: ARG002 - the Guard protocol's signature
        """No format of its kind has a place for examples."""
        raise no_examples(self)

    def read_scores(
        self,
        seq: int,
        windows: Sequence[Sequence[float]],
        *,
        single: bool = False,  # noqa: ARG002 - one text is all it judges
    ) -> Verdict:
        """The worst window's verdict; `windows` holds log-probabilities of the classes."""
        found = []
        for row in windows:
            unsafe = {at: p for at, p in enumerate(self._probabilities(row)) if at not in self._safe}
            p_unsafe = min(1.0, max(unsafe.values()) if self.multi_label else sum(unsafe.values()))
            if self.multi_label:
                named = [at for at, p in unsafe.items() if p > self._threshold_of(at)]
            else:
                named = [max(unsafe, key=lambda at: unsafe[at])] if p_unsafe > self._threshold else []
            label = Label.UNSAFE if named else Label.SAFE
            codes = [self._meanings[at].code(self._classes[at]) for at in named]
            categories = tuple(dict.fromkeys(code for code in codes if code))
            verdict = Verdict(seq=seq, outcome=Outcome.SCORED, label=label, p_unsafe=p_unsafe, categories=categories)
            found.append(verdict)
        return worst(found)

    def category_prompt(
        self,
        prompts: Sequence[PromptIds],  # noqa: ARG002 - the Guard protocol's signature
        windows: Sequence[Sequence[float]],  # noqa: ARG002
        *,
        single: bool = False,  # noqa: ARG002
    ) -> PromptIds | None:
        """Its categories are its labels': nothing is asked a second time."""
        return None

    def read_ids(self, seq: int, windows: Sequence[Sequence[int]], *, single: bool = False) -> Verdict:
        """A classifier writes nothing: always a GuardError."""
        raise GuardError(f"{self.name} classifies; it cannot have written {len(windows)} texts ({seq=}, {single=})")

    def _encode(self, dialogues: Sequence[tuple[str, str]]) -> list[PromptIds]:
        return [self._head + row + self._tail for row in self._words.batch_ids([text for _, text in dialogues])]

    def _threshold_of(self, at: int) -> float:
        own = self._meanings[at].threshold
        return self._threshold if own is None else own

    def _probabilities(self, logprobs: Sequence[float]) -> list[float]:
        if self._temperature == 1:
            return [math.exp(value) for value in logprobs]
        if self.multi_label:
            # Each class stands against its own absence, log(1 - p).
            absent = [math.log(-math.expm1(value)) if value < 0 else -math.inf for value in logprobs]
            pairs = zip(logprobs, absent, strict=True)
            return [shares(pair, self._temperature)[0] for pair in pairs]
        return shares(logprobs, self._temperature)


def _by_name(classes: Sequence[str], safe_labels: Sequence[str]) -> ClassMap:
    """What classes mean by their names alone: the safe ones, and each other one a category of its own name."""
    known = {label.casefold() for label in safe_labels} or SAFE_NAMES
    # Categories are kept in a list with commas between, in a database that holds no NUL.
    plain = {name: re.sub(r"[,\0]", " ", name).strip()[:LONGEST] or "unsafe" for name in classes}
    said = {name: "safe" if name.casefold() in known else plain[name] for name in classes}
    return ClassMap.model_validate_json(json.dumps({"labels": said}))


def _meanings(folder: Path, classes: Sequence[str], said: ClassMap) -> tuple[ClassMeaning, ...]:
    """The meaning of each class, which a map names as config.json does, or by its number."""
    unknown = [label for label in said.labels if label not in {*classes, *map(str, range(len(classes)))}]
    if unknown:
        raise GuardError(f"{folder}: {unknown[0]!r} is no class of config.json, which has {', '.join(classes)}")
    found = [said.labels.get(name, said.labels.get(str(at))) for at, name in enumerate(classes)]
    missing = [name for name, meaning in zip(classes, found, strict=True) if meaning is None]
    if missing:
        raise GuardError(f"{folder}: nothing says what the class {missing[0]!r} means; add it to labels")
    return tuple(meaning for meaning in found if meaning is not None)


def is_multi_label(config: dict[str, Any]) -> bool:
    """True if each class has a probability of its own (a sigmoid), also with a single class."""
    return config.get("problem_type") == "multi_label_classification" or len(_id2label(config)) == 1


def _id2label(config: dict[str, Any]) -> dict[str, str]:
    # transformers leaves out the default of two nameless classes.
    found: dict[str, str] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return found
