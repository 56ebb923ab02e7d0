"""Inputs that nobody meant: good ones, mutated by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5", b"9" * 40, b"9" * 5_000),
    *(b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", "不安全".encode(), "“答案”：".encode()),
    *(b'"version":2', b'"version":99999999999999999999', b'"items":[]', b'"seq":-1', b'{"a":' * 50),
    *(b"[" * 2_000, b"[" * 20_000, b'"' + b"x" * 70_000 + b'"'),
]


def mutations(seed: int, corpus: Sequence[bytes], count: int) -> Iterator[bytes]:
    """`count` inputs, the corpus itself first."""
    chance = random.Random(seed)
    for number in range(count):
        if number < len(corpus):
            yield corpus[number]
            continue
        content = bytearray(chance.choice(corpus))
        for _ in range(chance.randint(1, 4)):
            _mutate(content, corpus, chance)
        yield bytes(content)


def _mutate(content: bytearray, corpus: Sequence[bytes], chance: random.Random) -> None:
    start = chance.randint(0, len(content))
    end = min(len(content), start + int(chance.expovariate(1 / 8)))
    match chance.randrange(8):
        case 0:
            del content[start:end]
        case 1:
            content[start:start] = content[start:end] * chance.randint(1, 3)
        case 2:
            del content[start:]
        case 3:
            other = chance.choice(corpus)
            content[start:end] = other[chance.randint(0, len(other)) :]
        case 4 if start < len(content):
            content[start] = chance.randrange(256)
        case 5 if start < len(content):
            content[start] ^= 1 << chance.randrange(8)
        case _:
            content[start:end] = chance.choice(_TOKENS)
