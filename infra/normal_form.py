"""A text's normal form: what a reader sees in it, without what hides it from a filter.

Characters that are not seen go, letters that only look or count as others become those, reversed text is turned round,
words are put together that were taken apart, and stretched ones shortened. What is ordinary writing stays: Chinese
punctuation, emoji and their sequences, accents, text in both directions. Each character knows where it came from.

Pure: knows no guard and no word list. Sources: NFKC (Unicode Standard Annex 15), default ignorable characters (UAX 44),
confusable letters (Unicode Technical Standard 39, in the package confusable-homoglyphs), traditional to simplified
characters (OpenCC).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple

VERSION: Final = 3
"""Goes up with every change of what a text becomes: it is part of a guard's fingerprint."""

_MOST_ROUNDS: Final = 8
_TRADITIONAL: Final = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x2A6E0))
_COMPATIBLE: Final = ((0x80, 0xD800), (0xF900, 0x10000), (0x1D400, 0x1D800), (0x1F100, 0x1F200), (0x2F800, 0x2FA20))

_FLAG: Final = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
"""A flag such as England's, whose letters are tags."""
_INVISIBLE: Final = re.compile(
    f"{_FLAG}|"
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_REVERSED: Final = re.compile("\u202e([^\u202c\u2029\n]*)\u202c?")
_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u2066\u2067\u2068\u2069")
_JOINERS: Final = frozenset("\u200c\u200d")
_PICTOGRAPH: Final = (
    "\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\u203c\u2049\u2122\u2139\xa9\xae"
    "\U0001f000-\U0001faff"
)
_MEANT: Final = frozenset({"<super>", "<sub>", "<square>", "<fraction>", "<vertical>"})
_EMOJI: Final = frozenset("Ⓜ㊗㊙🅰🅱🅾🅿")
_BOXED: Final = (0x1F130, 0x1F150, 0x1F170)
"""Where the capitals in squares, in black circles and in black squares begin, which NFKC leaves."""
_IS_PICTOGRAPH: Final = re.compile(f"[{_PICTOGRAPH}]")
_JOINING: Final = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc]"
)
_RIGHT_TO_LEFT: Final = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
)

_MARKS: Final = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20f0\u3099\u309a\ufe20-\ufe2f"
_MARKED: Final = re.compile(f"[^{_MARKS}][{_MARKS}]+")
_OVERLAYS: Final = re.compile("[\u0334-\u0338\u20d0-\u20f0]")
_ZALGO: Final = 3
"""Marks on one letter that no script stacks on Latin or Chinese ones."""
_MARKS_READ: Final = 32
"""So many marks on one letter are put in order, which takes the square of their number; all others go unread."""

_HAN: Final = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_PLAIN: Final = re.compile(f"[A-Za-z0-9{_HAN}]+")
_APART: Final = r"*·•∙⋅.。_|/\\~^+=#@&$%\-—–`'\"´…＊．｡＿｜／＼～＾＋＝＃＠＆＄％－・‧※"
"""Marks that take a word apart. The enumeration comma and the comma are not among them: they make lists."""
_BLANKS: Final = r" \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
# Single characters, each apart from the next: three with anything between, two with what no sentence has between.
_HAN_APART: Final = re.compile(
    rf"(?<![{_HAN}])[{_HAN}]"
    rf"(?:(?:[{_BLANKS}]{{1,3}}|(?:[{_APART}]|[{_PICTOGRAPH}]\ufe0f?\u200d?){{1,4}})[{_HAN}](?![{_HAN}])){{2,}}"
)
_HAN_BESIDE: Final = re.compile(
    rf"(?<=[{_HAN}])(?:[*＊∙⋅`´]{{1,2}}|_{{1,2}})(?=[{_HAN}])"
    rf"|(?<=(?<![{_HAN}])[{_HAN}])[·•.|~]{{1,3}}(?=[{_HAN}](?![{_HAN}]))"
)
_LATIN_APART: Final = re.compile(  # by the same mark
    rf"(?<![A-Za-z0-9/.:=?&#@_-])[A-Za-z]([{_BLANKS}]|[{_APART}]{{1,2}})[A-Za-z](?![A-Za-z0-9])"
    r"(?:\1[A-Za-z](?![A-Za-z0-9]))+"
)
_GOES_ON: Final = re.compile(r"[/:=?&#@_-]\S")
"""What follows on letters with marks between in an address; behind a word, a blank follows on its mark."""
_NUMERALS: Final = "〇零一二三四五六七八九十百千万亿两"
_STRETCHED_HAN: Final = re.compile(rf"(?:((?![{_NUMERALS}])[{_HAN}])\1{{2,}})+")
_LATIN_WORD: Final = re.compile(r"[A-Za-z]{4,}")
_ROMAN: Final = re.compile(r"[IVX]+|[ivx]+")
_RUN: Final = re.compile(r"(.)\1*", re.DOTALL)
_SHORT_WORD: Final = 5
"""Three equal capitals in so short a word are an abbreviation's: IEEE, XXXL, PPPoE."""
_WORD: Final = re.compile(r"[^\W\d_]+")


class NormalForm(NamedTuple):
    """A normal form and, unless it is the text itself, where each of its characters began and ended in the original."""

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The part of the original from which the characters from `start` to before `end` came."""
        if self.starts is None or self.ends is None or start >= end:
            return start, end
        return min(self.starts[start:end]), max(self.ends[start:end])


_Edit = tuple[int, int, str]
"""From, to before, and what is there instead."""


def normal_form(text: str) -> NormalForm:
    """The normal form of a text. It is its own normal form."""
    form = NormalForm(text)
    for _ in range(_MOST_ROUNDS):
        before = form.text
        form = _round(form)
        if form.text == before:
            break
    return form


def _round(form: NormalForm) -> NormalForm:
    if not form.text.isascii():
        form = _turned_round(form)
        form = _edited(form, _composed(form.text))
        form = form._replace(text=form.text.translate(_letters().ones))
        form = _edited(form, ((at.start(), at.end(), _letters().many[at[0]]) for at in _letters().found(form.text)))
    form = _edited(form, _unseen(form.text))
    if not form.text.isascii():
        form = form._replace(text=_simplifier()(form.text))
        form = _edited(form, _look_alikes(form.text))
    form = _edited(form, _put_together(form.text))
    return _edited(form, _shortened(form.text))


def _edited(form: NormalForm, edits: Iterable[_Edit]) -> NormalForm:
    """The form after edits, which are in order and do not overlap."""
    text, starts, ends = form
    before: Sequence[int] = range(len(text)) if starts is None else starts
    after: Sequence[int] = range(1, len(text) + 1) if ends is None else ends
    parts: list[str] = []
    new_starts, new_ends = array("i"), array("i")
    done = 0
    for start, end, instead in edits:
        parts += (text[done:start], instead)
        new_starts.extend(before[done:start])
        new_ends.extend(after[done:start])
        new_starts.extend([min(before[start:end])] * len(instead))
        new_ends.extend([max(after[start:end])] * len(instead))
        done = end
    if not parts:
        return form
    parts.append(text[done:])
    new_starts.extend(before[done:])
    new_ends.extend(after[done:])
    return NormalForm("".join(parts), new_starts, new_ends)


def _turned_round(form: NormalForm) -> NormalForm:
    """Text under an override is stored backwards to be seen forwards, unless it is of a script that runs so."""
    text, starts, ends = form
    order: list[int] = []
    done = 0
    for at in _REVERSED.finditer(text):
        order += range(done, at.start())
        order += range(*at.span(1)) if _RIGHT_TO_LEFT.search(at[1]) else reversed(range(*at.span(1)))
        done = at.end()
    if not done:
        return form
    order += range(done, len(text))
    before: Sequence[int] = range(len(text)) if starts is None else starts
    after: Sequence[int] = range(1, len(text) + 1) if ends is None else ends
    return NormalForm(
        "".join([text[place] for place in order]),
        array("i", [before[place] for place in order]),
        array("i", [after[place] for place in order]),
    )


def _composed(text: str) -> Iterator[_Edit]:
    """Letters with marks as one character; marks that strike a letter through or pile up on it go."""
    for at in _MARKED.finditer(text):
        whole = unicodedata.normalize("NFC", at[0][: 1 + _MARKS_READ])
        seen = _OVERLAYS.sub("", whole)
        if len(seen) > _ZALGO:
            seen = seen[0]
        if seen != at[0] and not (at[0][0] in "0123456789#*\ufe0f" and at[0].endswith("\u20e3")):  # a keycap
            yield at.start(), at.end(), seen


class _Letters(NamedTuple):
    """Latin letters, digits and Chinese characters that come as others (NFKC): one for one, and several for one.

    What is written so on purpose stays: exponents, units, fractions, numbers in circles.
    """

    ones: dict[int, str]
    many: dict[str, str]
    pattern: re.Pattern[str]

    def found(self, text: str) -> Iterator[re.Match[str]]:
        return self.pattern.finditer(text)


@cache
def _letters() -> _Letters:
    ones: dict[int, str] = {}
    many: dict[str, str] = {}
    for code in (code for first, beyond in _COMPATIBLE for code in range(first, beyond)):
        letter = chr(code)
        plain = unicodedata.normalize("NFKC", letter)
        kind = unicodedata.decomposition(letter).partition(" ")[0]
        if plain == letter or not _PLAIN.fullmatch(plain) or letter in _EMOJI or kind in _MEANT:
            continue
        if kind == "<circle>" and not plain.isalpha():
            continue
        if len(plain) == 1:
            ones[code] = plain
        else:
            many[letter] = plain
    boxed = {first + at: chr(ord("A") + at) for first in _BOXED for at in range(26)}
    ones |= {code: plain for code, plain in boxed.items() if chr(code) not in _EMOJI}
    return _Letters(ones, many, re.compile(f"[{''.join(map(re.escape, many))}]"))


def _unseen(text: str) -> Iterator[_Edit]:
    directed = bool(_RIGHT_TO_LEFT.search(text))
    for at in _INVISIBLE.finditer(text):
        if len(at[0]) == 1 and not _is_ordinary(text, at.start(), directed=directed):
            yield at.start(), at.end(), ""


def _is_ordinary(text: str, at: int, *, directed: bool) -> bool:
    """True where an invisible character is part of ordinary writing."""
    unseen, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if unseen in _DIRECTIONS:
        return directed and not (_runs_rightwards(before) and _runs_rightwards(after))
    if unseen in _JOINERS and _JOINING.match(before) and _JOINING.match(after):
        return True
    if unseen == "\u200d":  # between two emoji, the first of which may have a selector
        base = text[at - 2 : at - 1] if before == "\ufe0f" else before
        return bool(_IS_PICTOGRAPH.match(base) and _IS_PICTOGRAPH.match(after))
    if unseen in "\ufe0e\ufe0f":
        return bool(_IS_PICTOGRAPH.match(before)) or (before in "0123456789#*" and after == "\u20e3")
    return False


def _runs_rightwards(letter: str) -> bool:
    return letter != "" and unicodedata.bidirectional(letter) == "L"


class _Simplifier:
    """Traditional characters by their simplified ones, as the words around them say (乾燥 is 干燥, 乾隆 is 乾隆)."""

    def __init__(self) -> None:
        from opencc import OpenCC  # noqa: PLC0415 - of an extra

        self._convert = OpenCC("t2s").convert
        letters = [chr(code) for first, beyond in _TRADITIONAL for code in range(first, beyond)]
        simple = self._convert("\n".join(letters)).split("\n")
        pairs = zip(letters, simple, strict=True)
        self._singly = {ord(one): other for one, other in pairs if one != other and len(other) == 1}
        self._some = re.compile(f"[{''.join(map(chr, self._singly))}]")

    def __call__(self, text: str) -> str:
        if not self._some.search(text):
            return text
        simple: str = self._convert(text)
        # Each character keeps its place: where a word became longer or shorter, they are taken one by one.
        return simple if len(simple) == len(text) else text.translate(self._singly)


@cache
def _simplifier() -> _Simplifier:
    return _Simplifier()


@cache
def _latin_twins() -> dict[str, str]:
    """Letters of other scripts that look like Latin ones."""
    from confusable_homoglyphs.confusables import confusables_data  # noqa: PLC0415 - of an extra

    twins = {}
    for letter, looks in confusables_data.items():
        latin = [look["c"] for look in looks if len(look["c"]) == 1 and look["c"].isascii() and look["c"].isalpha()]
        if len(letter) == 1 and not letter.isascii() and letter.isalpha() and latin:
            twins[letter] = min(latin, key=lambda twin: (twin.isupper() != letter.isupper(), twin))
    return twins


def _look_alikes(text: str) -> Iterator[_Edit]:
    """Latin letters for their twins, in words that mix scripts: no language does, a disguise does."""
    twins = _latin_twins()
    for at in _WORD.finditer(text):
        word = at[0]
        if word.isascii() or not any(letter in twins for letter in word):
            continue
        foreign = [letter for letter in word if not letter.isascii() and letter.isalpha() and not _is_chinese(letter)]
        latin = any(letter.isascii() for letter in word)
        if latin and all(letter in twins for letter in foreign):
            for offset, letter in enumerate(word):
                if letter in twins and not _is_chinese(letter):
                    yield at.start() + offset, at.start() + offset + 1, twins[letter]


def _is_chinese(letter: str) -> bool:
    return re.match(f"[{_HAN}]", letter) is not None


def _put_together(text: str) -> Iterator[_Edit]:
    """Without what takes words apart character by character."""
    edits: list[_Edit] = []
    for pattern, letters in ((_HAN_APART, f"[^{_HAN}]+"), (_LATIN_APART, "[^A-Za-z]+")):
        for at in pattern.finditer(text):
            if pattern is _LATIN_APART and not at[1].isspace() and _GOES_ON.match(text, at.end()):
                continue  # a part of an address
            edits += (
                (at.start() + between.start(), at.start() + between.end(), "")
                for between in re.finditer(letters, at[0])
            )
    taken = {start for start, _, _ in edits}
    edits += ((at.start(), at.end(), "") for at in _HAN_BESIDE.finditer(text) if at.start() not in taken)
    return iter(sorted(edits))


def _shortened(text: str) -> Iterator[_Edit]:
    """A Latin word's stretched letters once (not AAA, www, VIII, IEEE); a Chinese character twice, as in laughter."""
    edits: list[_Edit] = []
    for at in _LATIN_WORD.finditer(text):
        if len(set(at[0].lower())) > 1 and not _ROMAN.fullmatch(at[0]):
            edits += _runs(at, times=1)
    for at in _STRETCHED_HAN.finditer(text):
        edits += _runs(at, times=1 if len(set(at[0])) > 1 else 2)
    return iter(sorted(edits))


def _runs(word: re.Match[str], *, times: int) -> Iterator[_Edit]:
    for run in _RUN.finditer(word[0]):
        abbreviates = len(run[0]) == 3 and run[0].isupper() and len(word[0]) <= _SHORT_WORD
        if len(run[0]) > 2 and not abbreviates:
            yield word.start() + run.start(), word.start() + run.end(), times * run[1]
