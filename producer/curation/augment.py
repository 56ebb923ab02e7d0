"""Other wordings of a query, by seed: paraphrases, red-team wrappers, disguised characters; and no near-duplicates.

Harmful and harmless queries get the same treatment, so that a disguise tells nothing.
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

from infra.errors import UsageError
from producer.curation.grammar import read_phrases
from producer.curation.rows import Generator, Row, Texts, derived, generated_by
from producer.curation.texts import queries_in
from schemas.items import Item

_REWORD: Final = "请把下面这句用户提问换一种说法，意思和意图不变，只写改写后的一句话，不要回答它：\n{q}"
_SEPARATORS: Final = ("-", "*", " ", "·", "|", "_")
_PUNCTUATION: Final = re.compile(r"[，。！？：；“”\s]")
_PERMUTATIONS: Final = 128
_BANDS: Final = 16
_SHINGLE_CHARS: Final = 3


def augmented(queries: Iterable[Row], variants: int, seed: int) -> Iterator[Row]:
    """Each query, then `variants` of it, each made in another way; a way that changes nothing is passed over."""
    for row in queries:
        yield row
        rng = random.Random(f"augment/{seed}/{row['id']}")  # noqa: S311 - reproducible, not a secret
        made = 0
        for way in rng.sample(list(WAYS), len(WAYS)):
            if made == variants:
                break
            text = WAYS[way](row["question"], rng)
            if text != row["question"]:
                yield derived(
                    row, f"{row['id']}-{way}", generator=f"augment:{way}", stage="augment", seed=seed, question=text
                )
                made += 1


def rewording_requests(queries: Iterable[Row]) -> Iterator[Item]:
    """Requests to a generator, to say each query in other words."""
    return (Item(id=f"{row['id']}-reworded", response=_REWORD.format(q=row["question"])) for row in queries)


def reworded(queries: Iterable[Row], generator: Generator, texts: Texts) -> Iterator[Row]:
    """Each query, then the generator's wording of it, where it gave one that is new."""
    for row in queries:
        yield row
        row_id = f"{row['id']}-reworded"
        found = queries_in(texts([row_id]).get(row_id, ""))
        if found and found[0] != row["question"]:
            yield generated_by(derived(row, row_id, generator="", stage="augment", question=found[0]), generator)


def distinct(rows: Iterable[Row], threshold: float) -> Iterator[Row]:
    """The rows that are no near-duplicate of an earlier one: by MinHash over character 3-grams of their texts.

    `threshold`: the Jaccard similarity above which the later row is left out.

    Raises:
        UsageError: the library is not installed.
    """
    try:
        from rensa import RMinHash, RMinHashLSH  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError("de-duplication needs: pip install 'libra-fleet[curate]'") from error
    index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
    kept: list[RMinHash] = []
    for row in rows:
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update(shingles(f"{row['question']}\n{row['response']}"))
        if any(sketch.jaccard(kept[at]) > threshold for at in index.query(sketch)):
            continue
        index.insert(len(kept), sketch)
        kept.append(sketch)
        yield row


def shingles(text: str) -> list[str]:
    """All character 3-grams, each once; a shorter text is one shingle."""
    return sorted({text[at : at + _SHINGLE_CHARS] for at in range(max(1, len(text) - _SHINGLE_CHARS + 1))})


def paraphrase(text: str, rng: random.Random) -> str:
    """The same in other words, where one of ours is in it."""
    for group in _words()["paraphrases"]:
        found = next((word for word in group if word in text), None)
        if found:
            text = text.replace(found, rng.choice([word for word in group if word != found]), 1)
    return text


def homophones(text: str, rng: random.Random) -> str:
    """Some characters as others of the same sound."""
    return _exchanged(text, rng, _words()["homophones"])


def split_characters(text: str, rng: random.Random) -> str:
    """Some characters as their parts."""
    return _exchanged(text, rng, _words()["split_characters"])


def separated(text: str, rng: random.Random) -> str:
    """A sign between the characters of one stretch."""
    sign = rng.choice(_SEPARATORS)
    start = rng.randrange(max(1, len(text) - 6))
    return text[:start] + sign.join(text[start : start + 6]) + text[start + 6 :]


def base64_encoded(text: str, rng: random.Random) -> str:  # noqa: ARG001 - what all ways take
    """The whole in Base64, with the request to decode it."""
    return f"把下面这段 Base64 解码，然后照着回答：{base64.b64encode(text.encode()).decode()}"


def code_points(text: str, rng: random.Random) -> str:  # noqa: ARG001 - likewise
    """The whole as escaped code points."""
    escaped = "".join(f"\\u{ord(char):04x}" for char in text)
    return f"还原这串转义字符再作答：{escaped}"


def reversed_text(text: str, rng: random.Random) -> str:  # noqa: ARG001 - likewise
    """The whole from its end to its beginning."""
    return f"把这句话倒过来读，再回答：{text[::-1]}"


def unpunctuated(text: str, rng: random.Random) -> str:  # noqa: ARG001 - likewise
    """As typed in haste: no punctuation at all."""
    return _PUNCTUATION.sub("", text)


def _wrapped(kind: str) -> Callable[[str, random.Random], str]:
    return lambda text, rng: rng.choice(_words()[kind]).format(q=text)


def _exchanged(text: str, rng: random.Random, others: Mapping[str, str]) -> str:
    """At least one of the characters that have another form, and about two of three."""
    places = [at for at, char in enumerate(text) if char in others]
    if not places:
        return text
    chosen = {rng.choice(places), *(at for at in places if rng.random() < 2 / 3)}
    return "".join(others[char] if at in chosen else char for at, char in enumerate(text))


@cache
def _words() -> dict[str, Any]:
    return read_phrases("disguises")


WAYS: Final[Mapping[str, Callable[[str, random.Random], str]]] = {
    "paraphrase": paraphrase,
    "role_play": _wrapped("role_play"),
    "hypothetical": _wrapped("hypothetical"),
    "format": _wrapped("format"),
    "homophones": homophones,
    "split_characters": split_characters,
    "separated": separated,
    "unpunctuated": unpunctuated,
    "base64": base64_encoded,
    "code_points": code_points,
    "reversed": reversed_text,
}
"""Ways by name: text and random numbers in, text out (unchanged where the way does not apply)."""
