"""Qwen3Guard-Stream: Qwen3 with classification heads for a user's turn and for a model's, read at a text's last token.

Written here from the published shape, so that the checkpoint's own code, which wants an older transformers, is not run.
Per kind of turn a linear layer and an RMS norm lead to two heads: severity and category. Keys as the checkpoint has
them; shapes: H the hidden size, G `guard_inner_size`.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3Model
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

ARCHITECTURE: Final = "Qwen3ForGuardModel"


class GuardHeadsModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """`head_sizes`: the widths of the four groups of logits, each a distribution of its own."""

    config_class = Qwen3Config
    base_model_prefix = "model"
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012 - transformers' own; it writes nothing
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.model = Qwen3Model(config)
        inner = int(config.guard_inner_size)
        self.head_sizes = (
            int(config.num_query_risk_level),
            int(config.num_query_category),
            int(config.num_risk_level),
            int(config.num_category),
        )
        query_risk, query_category, risk, category = self.head_sizes
        self.query_risk_level_category_pre = nn.Linear(config.hidden_size, inner, bias=False)
        self.query_risk_level_category_layernorm = Qwen3RMSNorm(inner, eps=config.rms_norm_eps)
        self.query_risk_level_head = nn.Linear(inner, query_risk, bias=False)
        self.query_category_head = nn.Linear(inner, query_category, bias=False)
        self.risk_level_category_pre = nn.Linear(config.hidden_size, inner, bias=False)
        self.risk_level_category_layernorm = Qwen3RMSNorm(inner, eps=config.rms_norm_eps)
        self.risk_level_head = nn.Linear(inner, risk, bias=False)
        self.category_head = nn.Linear(inner, category, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config(cls, config: Qwen3Config, **_: Any) -> GuardHeadsModel:  # noqa: ANN401 - as transformers' auto classes
        """A model with random weights."""
        made: GuardHeadsModel = cls._from_config(config)  # type: ignore[no-untyped-call]
        return made

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        """Logits at each row's last token: query severity, query category, response severity, response category.

        Rows are padded on the right, which causal attention never sees from a real id: (n, T) to (n, all classes).
        """
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        rows = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]
        query = self.query_risk_level_category_layernorm(self.query_risk_level_category_pre(rows))
        response = self.risk_level_category_layernorm(self.risk_level_category_pre(rows))
        logits = [
            self.query_risk_level_head(query),
            self.query_category_head(query),
            self.risk_level_head(response),
            self.category_head(response),
        ]
        return SequenceClassifierOutput(logits=torch.cat(logits, dim=-1))
