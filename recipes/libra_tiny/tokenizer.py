"""A small byte-level BPE tokenizer, trained on the training texts and on the prompt they are put into.

A Han character, a digit or a punctuation mark is never merged with its neighbours, so that n-grams of tokens are
n-grams of characters. The pieces of the fixed prompt are: they are repeated in the training text until each is a single
token, which costs almost nothing at serving time and tells a model where the text begins and ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from infra.errors import GuardError
from schemas.items import Label
from worker.guards.libra import DIALOGUE, INSTRUCTION, PREFILL, user_turn
from worker.training.examples import answer_text, label_text
from worker.training.samples import Sample

END: Final = "<|endoftext|>"
TURN: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIALS: Final = (END, TURN, TURN_END)
# Qwen2.5's without a default system message.
_CHAT_TEMPLATE: Final = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)

VOCABULARY: Final = 7168
PROMPT_REPEATS: Final = 20_000
_DIALOGUE_PIECES: Final = DIALOGUE.split("{}")
TEXT_PIECE: Final = f"\n{_DIALOGUE_PIECES[0]}"
"""The prompt's piece before the question."""
ANSWER_PIECE: Final = _DIALOGUE_PIECES[1]
"""The prompt's piece between question and answer."""
_ANSWER_PIECES: Final = (PREFILL, '",\n', '  "分析": "', '"\n}')
_PIECES: Final = (f"user\n{INSTRUCTION}", TEXT_PIECE, ANSWER_PIECE, "assistant\n", *_ANSWER_PIECES)
# Line ends stand alone: beside one of a text's own, a piece of the prompt that begins with one is still found.
_SPLIT: Final = "|".join(
    [
        *map(re.escape, _PIECES),
        '不?安全(?=")',
        r"\p{Han}",
        r"\p{N}",
        r"[\p{L}&&[^\p{Han}]]+",
        r"[^\s\p{L}\p{N}]",
        r"[\r\n]",
        r"[^\S\r\n]+",
    ]
)


def train_tokenizer(
    samples: Sequence[Sample], size: int = VOCABULARY, prompt_repeats: int = PROMPT_REPEATS
) -> Tokenizer:
    """A tokenizer of `size` entries, the same for the same samples.

    Raises:
        GuardError: the two labels begin with the same token, or a piece of the prompt is more than one.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(samples, prompt_repeats), trainer)
    first = {label_ids(tokenizer, label)[0] for label in Label}
    if len(first) != len(Label):
        raise GuardError("the tokenizer gives both labels the same first token")
    for piece in _PIECES:
        piece_id(tokenizer, piece)
    return tokenizer


def piece_id(tokenizer: Tokenizer, piece: str) -> int:
    """The one id of a piece of the fixed prompt.

    Raises:
        GuardError: it is more than one token.
    """
    ids = encode_plain(tokenizer, piece)
    if len(ids) != 1:
        raise GuardError(f"{piece[:20]!r} is {len(ids)} tokens; repeat the prompt more often or allow more entries")
    return ids[0]


def _texts(samples: Sequence[Sample], prompt_repeats: int) -> Iterator[str]:
    frame = f"user\n{user_turn('', '')}"
    answers = {f"assistant\n{answer_text(sample.label, sample.analysis)}" for sample in samples}
    for _ in range(prompt_repeats):
        yield frame
    for _ in range(max(1, prompt_repeats // max(1, len(answers)))):
        yield from sorted(answers)
    for sample in samples:
        yield sample.item.question
        yield sample.item.response


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which control tokens mean nothing: user text never yields a control id."""
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def label_ids(tokenizer: Tokenizer, label: Label) -> list[int]:
    """The ids that follow the prefilled answer where the label is `label`."""
    head = encode_plain(tokenizer, f"assistant\n{PREFILL}")
    whole = encode_plain(tokenizer, f"assistant\n{PREFILL}{label_text(label)}")
    if whole[: len(head)] != head:
        raise GuardError("the label changes the tokens of the text before it")
    return whole[len(head) :]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.encode_special_tokens = False
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END,
        "unk_token": None,
        "additional_special_tokens": [TURN, TURN_END],
    }
    written = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(written, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of every control token.

    Raises:
        GuardError: the tokenizer lacks one.
    """
    found = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    known = {token: number for token, number in found.items() if number is not None}
    if len(known) != len(found):
        raise GuardError("the tokenizer lacks a control token")
    return known
