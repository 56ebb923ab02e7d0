"""Trains the bundled guard's language model from scratch, stage by stage, and writes the checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import DynamicCache

from schemas.items import Label
from worker.device.ngram_lm import NgramQwen2Config, NgramQwen2ForCausalLM
from worker.guards.checkpoint import CALIBRATION
from worker.training.data import Row
from worker.training.encoding import Batch, Example, RowEncoder, batches, collate, common_prefix
from worker.training.ngrams import TableRecipe
from worker.training.rendering import END, PREFILL, TURN_END
from worker.training.tokenizer import ANSWER_PIECE, TEXT_PIECE, control_ids, label_ids, piece_id, save_tokenizer

Report = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """The model's size."""

    hidden: int = 96
    intermediate: int = 256
    layers: int = 2
    heads: int = 3
    kv_heads: int = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, besides its rows."""

    synthetic_epochs: int = 1
    epochs: int = 1
    seed: int = 20260101
    threads: int = 2
    batch: int = 32
    peak_rate: float = 2e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.05
    label_weight: float = 3.0
    token_dropout: float = 0.1
    label_smoothing: float = 0.05
    bf16: bool = True
    table: TableRecipe = field(default_factory=TableRecipe)


_LOG_EVERY: Final = 50
_MARGIN_BATCH: Final = 128


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

    def __init__(self, tokenizer: Tokenizer, shape: Shape, recipe: Recipe, report: Report) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.recipe = recipe
        self.model = new_model(tokenizer, shape, recipe.table.slots)
        self.encoder = RowEncoder(tokenizer)
        self._pad = control_ids(tokenizer)[END]
        self._report = report
        self._rng = torch.Generator().manual_seed(recipe.seed)

    def fit(self, rows: Sequence[Row], epochs: int, after_epoch: Callable[[int], None]) -> None:
        """One stage: train on the rows; `after_epoch` is called with the number of epochs done."""
        examples = [self.encoder.encode(row) for row in rows]
        prefix = common_prefix(examples)
        longest = max(len(example.ids) for example in examples)
        self._report(f"{len(examples):,} rows, longest {longest} ids, {len(prefix)} of them common")
        # At positions that no row reached it still scores, but no longer writes its JSON: longer texts go in windows.
        config = self.model.config
        config.max_position_embeddings = max(longest, config.max_position_embeddings)
        steps = math.ceil(len(examples) / self.recipe.batch) * epochs
        optimizer = self._optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, self.recipe))
        for epoch in range(epochs):
            self._epoch(epoch, examples, prefix, optimizer, schedule)
            after_epoch(epoch + 1)

    def _optimizer(self) -> torch.optim.AdamW:
        trained = [p for name, p in self.model.named_parameters() if name != "ngram_weights"]
        matrices = [p for p in trained if p.dim() > 1]
        vectors = [p for p in trained if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.peak_rate, betas=(0.9, 0.98))

    def _epoch(
        self,
        epoch: int,
        examples: Sequence[Example],
        prefix: list[int],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.model.train()
        started, total = time.monotonic(), 0.0
        order = batches(examples, self.recipe.batch, self.recipe.seed + epoch)
        for step, chosen in enumerate(order, 1):
            batch = collate(chosen, len(prefix), self._pad, self.recipe.label_weight)
            loss = self._loss(batch, prefix)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % _LOG_EVERY == 0:
                seconds = time.monotonic() - started
                self._report(f"epoch {epoch + 1} step {step} loss {total / _LOG_EVERY:.4f} {seconds:.0f} s")
                total = 0.0

    def _loss(self, batch: Batch, prefix: list[int]) -> torch.Tensor:
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

    def _hidden(self, batch: Batch, prefix: list[int]) -> torch.Tensor:
        """Last hidden states of a batch; the shared prefix is computed once for all its rows."""
        cache = DynamicCache()
        self.model.model(input_ids=torch.tensor([prefix]), past_key_values=cache, use_cache=True)
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


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak rate: linear warm-up, then cosine down to 2 %."""
    warmup = max(1, int(steps * recipe.warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.inference_mode()
def lm_margins(model: NgramQwen2ForCausalLM, examples: Sequence[Example]) -> torch.Tensor:
    """The transformer's own margin, log P(unsafe) - log P(safe), where the label stands: (examples,)."""
    model.eval()
    found = torch.empty(len(examples))
    order = sorted(range(len(examples)), key=lambda at: examples[at].label)
    for start in range(0, len(order), _MARGIN_BATCH):
        chosen = order[start : start + _MARGIN_BATCH]
        rows = [examples[at].ids[: examples[at].label] for at in chosen]
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
    """Write what serving divides margins by."""
    (folder / CALIBRATION).write_text(json.dumps({"temperature": temperature}) + "\n", encoding="utf-8")


def settings_of(shape: Shape, recipe: Recipe) -> dict[str, Any]:
    """The run's figures, for the model card."""
    figures = asdict(recipe)
    table = {f"table: {name}": value for name, value in figures.pop("table").items()}
    return {**asdict(shape), **figures, **table}
