"""The benchmark's own formats: the `critic` field that its metric script reads, and worked examples for a prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Final, NamedTuple

from infra.critic import ANSWER_KEY, WORDS, read_critic
from infra.errors import DataError
from producer.datasets.dataset import RawRecord, raw_records
from producer.datasets.rows import RowError
from schemas.items import Example, Label


def write_critic(raw: str | None, label: Label | None) -> str:
    """The text for the field: the guard's own, unless the benchmark's script would read another label in it.

    Then (a guard that does not speak the benchmark's JSON) the label is put into that JSON, the text alongside it.
    """
    text = raw or ""
    if label is None or read_critic(text) is label:
        return text
    return json.dumps({ANSWER_KEY: WORDS[label], "分析": text}, ensure_ascii=False)


class Judgement(NamedTuple):
    """The end of one iteration: the guard's text, and the label found in it, if any."""

    raw: str | None
    label: Label | None


def critic_fields(judgements: Sequence[Judgement]) -> dict[str, object]:
    """The fields that are added to a row: `critic`; after several iterations also all texts, the majority and the rest.

    `critic` is then the first text of the majority, so that the metric script reads the majority. A tie goes
    to 不安全 before no label before 安全.
    """
    texts = [write_critic(*judgement) for judgement in judgements]
    if len(texts) == 1:
        return {"critic": texts[0]}
    votes = Counter(judgement.label for judgement in judgements)
    severity = {Label.UNSAFE: 2, None: 1, Label.SAFE: 0}
    majority = max(votes, key=lambda label: (votes[label], severity[label]))
    first = next(at for at, judgement in enumerate(judgements) if judgement.label is majority)
    return {
        "critic": texts[first],
        "critics": texts,
        "majority": WORDS[majority] if majority else None,
        "disagreement": round(1 - votes[majority] / len(texts), 4),
    }


MAX_EXAMPLES_BYTES: Final = 256 * 1024
"""All examples together, in UTF-8 bytes: they travel with every chunk."""
_ANALYSES: Final = ("analyze", "analysis", "分析")


def draw_examples(path: str, count: int, *, seed: int, judged: str) -> tuple[Example, ...]:
    """So many labelled rows of a data set, the same for the same seed, half of each label as far as there are.

    A row that is also in the data set `judged` would give its own answer away: it is not drawn.

    Raises:
        DataError: a file cannot be read, has too few such rows, or those drawn are too long.
    """
    candidates: dict[bytes, Example] = {}
    for content_hash, record in _hashed(path):
        item = record.item()
        if item.truth is not None and item.response and not item.history:  # else it is no question with an answer
            said = next((text for key in _ANALYSES if isinstance(text := record.row.get(key), str)), "")
            known = Example(question=item.question, response=item.response, label=item.truth, analysis=said)
            candidates[content_hash] = known
    found = len(candidates)
    for content_hash, _ in _hashed(judged):
        candidates.pop(content_hash, None)
    if len(candidates) < count:
        raise DataError(
            f"{path}: {count:,} examples are wanted, but of its {found:,} labelled rows "
            f"{len(candidates):,} are not among the rows to be judged"
        )
    rng = Random(seed)  # noqa: S311 - a sample, no secret
    shuffled = list(candidates.values())
    rng.shuffle(shuffled)
    first, second = rng.sample([Label.SAFE, Label.UNSAFE], 2)  # which of them has one more where the count is odd
    groups = {label: [one for one in shuffled if one.label is label] for label in Label}
    of_second = min(len(groups[second]), max(count // 2, count - len(groups[first])))
    drawn = groups[first][: count - of_second] + groups[second][:of_second]
    rng.shuffle(drawn)
    size = sum(len(f"{one.question}{one.response}{one.analysis}".encode()) for one in drawn)
    if size > MAX_EXAMPLES_BYTES:
        raise DataError(
            f"{path}: the {count:,} examples drawn take {size:,} bytes; the limit is {MAX_EXAMPLES_BYTES:,}"
        )
    return tuple(drawn)


def _hashed(path: str) -> Iterator[tuple[bytes, RawRecord]]:
    """The rows that are items, each with the hash of what is judged."""
    for record in raw_records(path):
        if not isinstance(record, RawRecord):
            continue
        try:
            yield record.item().content_hash, record
        except RowError:
            continue
