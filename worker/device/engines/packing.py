"""Attention for prompts that lie one behind the other in a single row: no padding, and each sees itself alone.

Transformers calls `packed_attention` in place of its own kernels, by the name `PACKED`. It knows nothing of
models, prompts or labels. Shapes: T the ids of all prompts, n those of one, P the shared prefix before each of
them, H query heads, K key heads, D the size of a head.

On a CPU attention is written as matrix products, which there run at twice the speed of torch's own kernel for
prompts of a few hundred ids (docs/decisions/0016). On CUDA it is torch's variable-length kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED: Final = "libra_packed"
LONGEST_PRODUCT: Final = 1024
"""Above so many ids a whole table of attention weights costs more memory than it saves time."""

Places = npt.NDArray[np.int64]

PrefixStates = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of the shared prefix per layer, each (1, K, P, D); empty: no prefix."""


class Pack:
    """The positions of the prompts in one row, and the states that precede each of them."""

    def __init__(self, lengths: Sequence[int], prefix: PrefixStates) -> None:
        self.lengths = tuple(lengths)
        self._lengths: Places = np.array(self.lengths, dtype=np.int64)
        self._prefix = prefix
        self._masks: dict[tuple[object, ...], torch.Tensor] = {}
        self._offsets: dict[tuple[object, ...], torch.Tensor] = {}
        self._sources: dict[torch.device, torch.Tensor] = {}

    @property
    def prefix_tokens(self) -> int:
        """P."""
        return self._prefix[0][0].shape[2] if self._prefix else 0

    def position_ids(self, device: torch.device) -> torch.Tensor:
        """Every prompt counts on from the prefix: (1, T)."""
        return send(torch.from_numpy(_within(self._lengths) + self.prefix_tokens), device)[None]

    def last(self) -> torch.Tensor:
        """Each prompt's last place in the row: (prompts,)."""
        return torch.from_numpy(self._lengths.cumsum() - 1)

    def extended(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One prompt's keys and values behind those of the prefix: (1, K, P + n, D) each."""
        if not self._prefix:
            return key, value
        keys, values = self._prefix[layer]
        return torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)

    def extended_row(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for a whole row, each prompt's behind its own copy of the prefix's: (prompts x P + T, K, D) each."""
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if not self._prefix:
            return keys, values
        sources = self._sources.get(key.device)
        if sources is None:
            sources = self._sources[key.device] = send(torch.from_numpy(self.copied()), key.device)
        before = [states[0].transpose(0, 1) for states in self._prefix[layer]]
        return torch.cat([before[0], keys])[sources], torch.cat([before[1], values])[sources]

    def copied(self) -> Places:
        """For each place of a row with prefixes, which one of the prefix and the prompts behind it is copied there."""
        first, longer = self.prefix_tokens, self._lengths + self.prefix_tokens
        within = _within(longer)
        # A place behind the prefix is an id of its own prompt, which begins where those before it end.
        begins = (self._lengths.cumsum() - self._lengths).repeat(longer)
        return np.where(within < first, within, within + begins)

    def mask(self, n: int, like: torch.Tensor, window: int | None) -> torch.Tensor:
        """0 where an id may look, -inf elsewhere: (n, P + n). The same for all layers of a kind."""
        found = self._masks.get((n, window, like.device))
        if found is None:
            at = torch.arange(n, device=like.device)[:, None] + self.prefix_tokens
            other = torch.arange(self.prefix_tokens + n, device=like.device)[None]
            hidden = other > at if window is None else (other > at) | (other <= at - window)
            found = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
            self._masks[n, window, like.device] = found
        return found

    def offsets(self, device: torch.device, before: int) -> torch.Tensor:
        """Return each prompt's start and the end of the last, with `before` ids ahead of each: (prompts + 1,) int32."""
        found = self._offsets.get((device, before))
        if found is None:
            ends = np.concatenate([[0], (self._lengths + before).cumsum()]).astype(np.int32)
            found = self._offsets[device, before] = send(torch.from_numpy(ends), device)
        return found


def _within(lengths: Places) -> Places:
    """Of each id of some prompts, one after the other, the place in its own prompt."""
    found: Places = np.arange(lengths.sum()) - (lengths.cumsum() - lengths).repeat(lengths)
    return found


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of this process's memory on the device; the caller does not wait for what the device does meanwhile."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pack: Pack,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,  # noqa: ANN401 - whatever an architecture adds
) -> tuple[torch.Tensor, None]:
    """Causal attention within each prompt and on the prefix: (1, H, T, D) to (1, T, H, D).

    Raises:
        TypeError: the architecture wants something of attention that is not done here.
    """
    unknown = [name for name in ("s_aux", "position_bias", "head_mask") if others.get(name) is not None]
    if unknown or attention_mask is not None or not getattr(module, "is_causal", True):
        raise TypeError(f"packed attention is causal and plain: {unknown or 'no mask of its own'}")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if query.is_cuda and softcap is None and query.dtype is not torch.float32:
        return ragged_attention(
            query, key, value, pack, layer=layer, scale=scaling, sliding_window=sliding_window
        ), None
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    begin = 0
    for n in pack.lengths:
        end = begin + n
        keys, values = pack.extended(layer, key[:, :, begin:end], value[:, :, begin:end])
        mask = pack.mask(n, query, sliding_window)
        mine = query[:, :, begin:end]
        if n <= LONGEST_PRODUCT or softcap is not None:
            # Two matrix products. The query heads of a key head are one matrix.
            grouped, across = mine[0].reshape(heads, groups * n, query.shape[3]), keys[0].transpose(1, 2)
            allowed = mask.repeat(groups, 1).expand(heads, -1, -1)
            if softcap is None:
                scores = torch.baddbmm(allowed, grouped, across, alpha=scale)
            else:
                scores = torch.tanh(torch.bmm(grouped, across) * (scale / softcap)) * softcap + allowed
            result = torch.bmm(scores.softmax(dim=-1), values[0]).view(query.shape[1], n, value.shape[3])
        else:
            result = scaled_dot_product_attention(mine, keys, values, attn_mask=mask, scale=scaling, enable_gqa=True)[0]
        output[0, begin:end] = result.transpose(0, 1)
        begin = end
    return output, None


def ragged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    *,
    layer: int,
    scale: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """The same for all prompts at once by torch's flash attention for ragged rows, which runs on CUDA alone."""
    keys, values = pack.extended_row(layer, key, value)
    before, longest = pack.prefix_tokens, max(pack.lengths)
    output = varlen_kernel()(
        query[0].transpose(0, 1),
        keys,
        values,
        pack.offsets(query.device, 0),
        pack.offsets(query.device, before),
        longest,
        before + longest,
        scale=scale,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
    )
    assert isinstance(output, torch.Tensor)  # noqa: S101 - a tuple only where more was asked for
    return output[None]


@cache
def varlen_kernel() -> Callable[..., object]:
    """Torch's kernel, looked up once: asking for its signature in each layer of each batch cost a tenth of a launch.

    Raises:
        TypeError: this torch has none that can do what is needed.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - not in every build
    except ImportError as error:
        raise TypeError(f"torch {torch.__version__} has no attention for ragged rows") from error
    taken = signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= set(taken):
        raise TypeError(f"the attention for ragged rows of torch {torch.__version__} takes neither scale nor window")
    # Fewer heads of keys than of queries: newer versions need the flag, older ones have none.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in taken else varlen_attn


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
