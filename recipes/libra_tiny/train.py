"""Trains the bundled guard's language model from scratch, stage by stage, and writes the checkpoint."""

from __future__ import annotations

import json
import math
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import DynamicCache

from recipes.libra_tiny.ngrams import TableSettings
from recipes.libra_tiny.tokenizer import (
    ANSWER_PIECE,
    END,
    TEXT_PIECE,
    TURN,
    TURN_END,
    control_ids,
    encode_plain,
    label_ids,
    piece_id,
    save_tokenizer,
)
from schemas.items import Label
from worker.device.ngram_lm import NgramQwen2Config, NgramQwen2ForCausalLM
from worker.guards.base import PromptIds, common_length
from worker.guards.checkpoint import CALIBRATION
from worker.guards.libra import PREFILL, user_turn
from worker.training.examples import Example, answer_text
from worker.training.recipe import Optimization, Strict
from worker.training.samples import Sample
from worker.training.stage import Report


class Shape(Strict):
    """The model's size."""

    hidden: int = 96
    intermediate: int = 256
    layers: int = 2
    heads: int = 3
    kv_heads: int = 1


class TinyRecipe(Optimization):
    """All that decides a run of libra-tiny, besides its rows. The learning rate falls along a cosine."""

    synthetic_epochs: int = 1
    epochs: int = 1
    learning_rate: float = 2e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.05
    label_weight: float = 3.0
    batch_rows: int = 32
    seed: int = 20260101
    threads: int = 2
    token_dropout: float = 0.1
    label_smoothing: float = 0.05
    bf16: bool = True
    shape: Shape = Field(default_factory=Shape)
    table: TableSettings = Field(default_factory=TableSettings)

    def settings(self) -> dict[str, Any]:
        """The run's figures by name, for the model card."""
        figures = self.model_dump()
        shape, table = figures.pop("shape"), figures.pop("table")
        return {**shape, **figures, **{f"table: {name}": value for name, value in table.items()}}


_BUCKET_BATCHES: Final = 32
IGNORED: Final = -100
_LOG_EVERY: Final = 50
_MARGIN_BATCH: Final = 128


@dataclass(frozen=True)
class Batch:
    """n rows behind a shared prefix of P ids, padded on the right to T: ids are n x T, the mask n x (P + T).

    `places` of hidden states to read, their `targets` and `weights`: n x the longest answer.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


class TokenizerEncoder:
    """Encodes samples as the serving side will render them: whole turns, control ids put between them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        control = control_ids(tokenizer)
        self._turn, self._turn_end = control[TURN], control[TURN_END]
        self._between = [self._turn_end, *encode_plain(tokenizer, "\n"), self._turn]
        role = encode_plain(tokenizer, "assistant\n")
        self._role_length = len(role)
        self._label_place = len(encode_plain(tokenizer, f"assistant\n{PREFILL}"))
        self._answers: dict[tuple[Label, str], list[int]] = {}

    def encode(self, sample: Sample) -> Example:
        """The sample's ids, and where its answer and its label stand."""
        user = encode_plain(self._tokenizer, f"user\n{user_turn(sample.item.question, sample.item.response)}")
        head = [self._turn, *user, *self._between]
        key = (sample.label, sample.analysis)
        if key not in self._answers:  # few answers, many rows
            text = f"assistant\n{answer_text(*key)}"
            self._answers[key] = [*encode_plain(self._tokenizer, text), self._turn_end]
        ids = array("i", [*head, *self._answers[key]])
        answer, label = len(head) + self._role_length, len(head) + self._label_place
        return Example(ids, answer, label, sample.label, sample.weight)


def common_prefix(examples: Sequence[Example]) -> PromptIds:
    """The ids that every example begins with, before any answer."""
    return examples[0].ids[: common_length([example.ids[: example.answer] for example in examples])]


def batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Every example once, in batches of near-equal lengths, in an order that `seed` decides."""
    rng = random.Random(seed)  # noqa: S311 - reproducible order, not a secret
    order = list(examples)
    rng.shuffle(order)
    bucket = size * _BUCKET_BATCHES
    found = []
    for start in range(0, len(order), bucket):
        near = sorted(order[start : start + bucket], key=lambda example: len(example.ids))
        found += [near[place : place + size] for place in range(0, len(near), size)]
    rng.shuffle(found)
    yield from found


def collate(examples: Sequence[Example], prefix: int, pad: int, label_weight: float) -> Batch:
    """Tensors of a batch, without the first `prefix` ids of every row.

    The last id is no input and the answer's tokens alone are targets. A row's label weighs `label_weight`, and all
    its other answer tokens together weigh 1.
    """
    width = max(len(example.ids) for example in examples) - prefix - 1
    depth = max(len(example.ids) - example.answer for example in examples)
    ids = torch.full((len(examples), width), pad)
    mask = torch.zeros((len(examples), prefix + width), dtype=torch.long)
    places = torch.zeros((len(examples), depth), dtype=torch.long)
    targets = torch.full((len(examples), depth), IGNORED)
    weights = torch.zeros((len(examples), depth))
    for number, example in enumerate(examples):
        body = example.ids[prefix:-1]
        answer = example.ids[example.answer :]
        ids[number, : len(body)] = torch.tensor(body)
        mask[number, : prefix + len(body)] = 1
        places[number, : len(answer)] = torch.arange(len(answer)) + example.answer - 1 - prefix
        targets[number, : len(answer)] = torch.tensor(answer)
        weights[number, : len(answer)] = 1 / len(answer)
        weights[number, example.label - example.answer] = label_weight
        weights[number] *= example.weight
    return Batch(ids, mask, places, targets, weights)


def new_model(tokenizer: Tokenizer, shape: Shape, slots: int) -> NgramQwen2ForCausalLM:
    """An untrained model of that shape, with the embedding tied to the head and an empty table."""
    control = control_ids(tokenizer)
    config = NgramQwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=control[TURN_END],
        pad_token_id=control[END],
        ngram_slots=slots,
        text_id=piece_id(tokenizer, TEXT_PIECE),
        answer_id=piece_id(tokenizer, ANSWER_PIECE),
        end_id=control[TURN_END],
        cue_id=piece_id(tokenizer, PREFILL),
        safe_id=label_ids(tokenizer, Label.SAFE)[0],
        unsafe_id=label_ids(tokenizer, Label.UNSAFE)[0],
    )
    return NgramQwen2ForCausalLM(config)


class Trainer:
    """One training run: model, optimizer, schedule."""

    def __init__(self, tokenizer: Tokenizer, recipe: TinyRecipe, report: Report) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.model = new_model(tokenizer, recipe.shape, recipe.table.slots)
        self.encoder = TokenizerEncoder(tokenizer)
        self._pad = control_ids(tokenizer)[END]
        self._report = report
        self._rng = torch.Generator().manual_seed(recipe.seed)

    def fit(self, samples: Sequence[Sample], epochs: int, after_epoch: Callable[[int], None]) -> None:
        """Train one stage on the samples; `after_epoch` is called with the number of epochs done."""
        examples = [self.encoder.encode(sample) for sample in samples]
        prefix = common_prefix(examples)
        longest = max(len(example.ids) for example in examples)
        self._report(f"{len(examples):,} rows, longest {longest} ids, {len(prefix)} of them common")
        # At positions that no row reached it still scores, but no longer writes its JSON: longer texts go in windows.
        config = self.model.config
        config.max_position_embeddings = max(longest, config.max_position_embeddings)
        steps = math.ceil(len(examples) / self.recipe.batch_rows) * epochs
        trained = [p for name, p in self.model.named_parameters() if name != "ngram_weights"]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, self.recipe))
        for epoch in range(epochs):
            self._epoch(epoch, examples, prefix, optimizer, schedule)
            after_epoch(epoch + 1)

    def _epoch(
        self,
        epoch: int,
        examples: Sequence[Example],
        prefix: PromptIds,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.model.train()
        started, total = time.monotonic(), 0.0
        order = batches(examples, self.recipe.batch_rows, self.recipe.seed + epoch)
        for step, chosen in enumerate(order, 1):
            batch = collate(chosen, len(prefix), self._pad, self.recipe.label_weight)
            loss = self._loss(batch, prefix)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % _LOG_EVERY == 0:
                seconds = time.monotonic() - started
                self._report(f"epoch {epoch + 1} step {step} loss {total / _LOG_EVERY:.4f} {seconds:.0f} s")
                total = 0.0

    def _loss(self, batch: Batch, prefix: PromptIds) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.bf16):
            hidden = self._hidden(batch, prefix)
            rows = torch.arange(len(batch.ids)).unsqueeze(1)
            logits = self.model.lm_head(hidden[rows, batch.places])
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1),
            batch.targets.flatten(),
            reduction="none",
            label_smoothing=self.recipe.label_smoothing,
        )
        weights = batch.weights.flatten()
        return (loss * weights).sum() / weights.sum()

    def _hidden(self, batch: Batch, prefix: PromptIds) -> torch.Tensor:
        """Last hidden states of a batch; the shared prefix is computed once for all its rows."""
        cache = DynamicCache()
        self.model.model(input_ids=torch.tensor([prefix.tolist()]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch.ids))
        ids = self._drop_tokens(batch)
        output = self.model.model(input_ids=ids, attention_mask=batch.mask, past_key_values=cache, use_cache=True)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _drop_tokens(self, batch: Batch) -> torch.Tensor:
        """Blank a share of the user turn's tokens, against learning texts by heart."""
        chance = torch.rand(batch.ids.shape, generator=self._rng)
        place = torch.arange(batch.ids.shape[1]).unsqueeze(0)
        in_text = place < batch.places[:, :1] - 4
        return torch.where((chance < self.recipe.token_dropout) & in_text, self._pad, batch.ids)


def _rate(step: int, steps: int, recipe: TinyRecipe) -> float:
    """The share of the peak learning rate: linear warm-up, then cosine down to 2 %."""
    warmup = max(1, int(steps * recipe.warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.inference_mode()
def lm_margins(model: NgramQwen2ForCausalLM, examples: Sequence[Example]) -> torch.Tensor:
    """The transformer's own margin, log P(unsafe) - log P(safe), where the label stands: (examples,)."""
    model.train(mode=False)
    found = torch.empty(len(examples))
    order = sorted(range(len(examples)), key=lambda at: examples[at].label)
    for start in range(0, len(order), _MARGIN_BATCH):
        chosen = order[start : start + _MARGIN_BATCH]
        rows = [examples[at].prompt.tolist() for at in chosen]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        both = last @ model.lm_head.weight[[model.config.safe_id, model.config.unsafe_id]].T
        found[chosen] = both[:, 1] - both[:, 0]
    return found


def save_checkpoint(model: NgramQwen2ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the bf16 weights, the configurations and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = NgramQwen2ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.tie_weights()
    copy.bfloat16()
    copy.generation_config.do_sample = False
    copy.generation_config.max_new_tokens = 64
    copy.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, context_tokens=model.config.max_position_embeddings)


def save_temperature(folder: Path, temperature: float) -> None:
    """Write the temperature, by which serving divides margins."""
    (folder / CALIBRATION).write_text(json.dumps({"temperature": temperature}) + "\n", encoding="utf-8")
