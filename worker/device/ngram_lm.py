"""A Qwen2 causal language model with a table of hashed n-gram weights: the architecture of libra-tiny.

Where a prompt asks for the verdict (the token `cue_id`) the logits of both verdict tokens become those of a logistic
regression over the presence of token n-grams in the text that is judged, in which the transformer's own margin is one
more feature (after Wang & Manning 2012, "Baselines and Bigrams"; hashing after Weinberger et al. 2009). At every other
place it is the plain language model, so that it also writes. It knows token ids, not what they say.

The text is what lies between the first `text_id` and `end_id`, question and answer parted by the first `answer_id`.
These ids stand for pieces of the fixed prompt. An answer's n-gram counts by itself, and once more as one that follows a
question where there is one (the feature augmentation of Daumé III 2007), so that comments without a question and
dialogues share what they have in common and no more.

Sums are causal, so that packed, padded and cached prompts give one result: a prompt that continues a cached prefix
begins inside the text, and while the model writes, the finished sum travels on the cache.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

MODEL_TYPE: Final = "libra_ngram_qwen2"
LONGEST: Final = 3
"""Tokens of the longest n-gram."""
_BITS: Final = 63
_MIX: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)
"""Odd 64-bit multipliers (SplitMix64), as signed numbers below."""


class NgramQwen2Config(Qwen2Config):  # type: ignore[no-untyped-call]
    """Qwen2's configuration, the frame's ids, and how the verdict is put together.

    margin = `lm_share` * the transformer's margin + `ngram_share` * the table's sum + `margin_bias`.
    """

    model_type = MODEL_TYPE

    ngram_slots: int = 2
    text_id: int = 0
    answer_id: int = 0
    end_id: int = 0
    cue_id: int = 0
    safe_id: int = 0
    unsafe_id: int = 0
    lm_share: float = 1.0
    ngram_share: float = 0.0
    margin_bias: float = 0.0


_OUTSIDE, _QUESTION, _ANSWER, _REPLY = range(4)


class Field(NamedTuple):
    """The part and the prompt number of each id, (rows, T) each; a reply is an answer that follows a question."""

    number: torch.Tensor
    prompt: torch.Tensor


class NgramQwen2ForCausalLM(Qwen2ForCausalLM):  # type: ignore[no-untyped-call]
    """See the module. `head_alone` tells an engine that a hidden state does not decide the logits by itself."""

    config: NgramQwen2Config
    config_class = NgramQwen2Config
    head_alone = False

    def __init__(self, config: NgramQwen2Config) -> None:
        super().__init__(config)
        self.ngram_weights = nn.Parameter(torch.zeros(config.ngram_slots))

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,  # noqa: ANN401 - transformers' caches have no common type
        logits_to_keep: int | torch.Tensor = 0,
        **others: Any,  # noqa: ANN401 - whatever Qwen2 takes
    ) -> Any:  # noqa: ANN401
        """Logits (rows, kept, V); the verdict's tokens are weighed again after each cue."""
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        # The table's sum over the text up to each id: (rows, T), float64.
        finished = getattr(past_key_values, "libra_ngram_sum", None) if before else None
        if finished is not None:
            sums = finished[:, None].expand(input_ids.shape)
        else:
            pack = others.get("pack")
            lengths = (input_ids.shape[1],) if pack is None else pack.lengths
            inside = before > 0 if pack is None else pack.prefix_tokens > 0
            found = fields(input_ids, lengths, self.config, inside=inside)
            slots = ngram_slots(input_ids, found, self.config.ngram_slots)
            slots = first_occurrences(slots, found.prompt)
            each = self.ngram_weights[slots].double().masked_fill(slots == 0, 0.0).sum(dim=-1)
            sums = torch.cat([part.cumsum(dim=1) for part in torch.split(each, list(lengths), dim=1)], dim=1)
        output = super().forward(
            input_ids=input_ids, past_key_values=past_key_values, logits_to_keep=logits_to_keep, **others
        )
        if output.past_key_values is not None:
            output.past_key_values.libra_ngram_sum = sums[:, -1]
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        config, logits, asked = self.config, output.logits, input_ids[:, kept] == self.config.cue_id
        safe, unsafe = logits[..., config.safe_id].double(), logits[..., config.unsafe_id].double()
        margin = config.lm_share * (unsafe - safe) + config.ngram_share * sums[:, kept] + config.margin_bias
        # Both together keep their share of all tokens; only its division between them changes.
        both = torch.logaddexp(safe, unsafe)
        for token, own, sign in ((config.safe_id, safe, -1), (config.unsafe_id, unsafe, 1)):
            weighed = both + nn.functional.logsigmoid(sign * margin)
            logits[..., token] = torch.where(asked, weighed, own).to(logits.dtype)
        return output


def fields(ids: torch.Tensor, lengths: tuple[int, ...], config: NgramQwen2Config, *, inside: bool) -> Field:
    """Locate the judged text. `inside`: each prompt goes on from a prefix that ended inside the text."""
    number, prompt = torch.zeros_like(ids), torch.zeros_like(ids)
    begin = 0
    for at, n in enumerate(lengths):
        mine = ids[:, begin : begin + n]
        opened, answered, ended = (
            (mine == token).cumsum(dim=1) > 0 for token in (config.text_id, config.answer_id, config.end_id)
        )
        if not inside:
            # Padding on the left may hold the end's id, and examples before the text hold answers.
            answered = (opened & (mine == config.answer_id)).cumsum(dim=1) > 0
            ended = (opened & (mine == config.end_id)).cumsum(dim=1) > 0
        text = (opened | inside) & ~ended & (mine != config.text_id) & (mine != config.answer_id)
        asked = (text & ~answered).cumsum(dim=1) > 0
        number[:, begin : begin + n] = text * torch.where(answered, torch.where(asked, _REPLY, _ANSWER), _QUESTION)
        prompt[:, begin : begin + n] = at
        begin += n
    return Field(number, prompt)


def ngram_slots(ids: torch.Tensor, field: Field, slots: int) -> torch.Tensor:
    """The table's slots of each n-gram that ends at an id, and 0 where there is none: (rows, T, 2 * LONGEST).

    An n-gram lies within one field of one prompt. The first half are questions' and answers', the second replies'.
    """
    keys = field.number + 4 * field.prompt
    valid = field.number != _OUTSIDE
    reply = field.number == _REPLY
    shared, own = _mixed(torch.where(reply, _ANSWER, field.number)), _mixed(field.number)
    of_all, of_replies = [], []
    for n in range(LONGEST):
        there = torch.zeros_like(valid)
        there[:, n:] = (keys[:, n:] == keys[:, : keys.shape[1] - n]) if n else True
        shifted = torch.zeros_like(ids)
        shifted[:, n:] = ids[:, : ids.shape[1] - n] if n else ids
        valid = valid & there
        shared, own = _mixed(shared + shifted + 1), _mixed(own + shifted + 1)
        of_all.append(torch.where(valid, _slot(shared + n, slots), 0))
        of_replies.append(torch.where(valid & reply, _slot(own + n, slots), 0))
    return torch.stack(of_all + of_replies, dim=-1)


def first_occurrences(slots: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The slots with each one's repetitions within its prompt set to 0: presence counts, not number."""
    rows, width, depth = slots.shape
    row = torch.arange(rows, device=slots.device)[:, None] * (int(prompt.max()) + 1) + prompt
    flat = slots.flatten()
    keys = (row[:, :, None].expand(-1, -1, depth).flatten() << 32) + flat
    order = keys.argsort(stable=True)
    in_order = keys[order]
    repeated = torch.zeros_like(flat, dtype=torch.bool)
    repeated[order[1:]] = in_order[1:] == in_order[:-1]
    return flat.masked_fill(repeated, 0).view(rows, width, depth)


def _slot(code: torch.Tensor, slots: int) -> torch.Tensor:
    return _mixed(code).remainder(slots - 1) + 1


def _mixed(code: torch.Tensor) -> torch.Tensor:
    """Numbers spread over all of int64; products wrap around."""
    for factor in _MIX:
        signed = factor - (1 << 64) if factor >> _BITS else factor
        code = (code ^ ((code >> 29) & 0x7FFFFFFFF)) * signed
    return code ^ ((code >> 32) & 0xFFFFFFFF)


AutoConfig.register(MODEL_TYPE, NgramQwen2Config)
AutoModelForCausalLM.register(NgramQwen2Config, NgramQwen2ForCausalLM)
