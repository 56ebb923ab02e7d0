"""Norms are torch's own where they compute the same, and the model's where they do not."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from worker.device.engines.norms import fuse_norms  # noqa: E402

SHAPE = {
    "vocab_size": 301,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "pad_token_id": 0,
}


def model_of(name: str, dtype: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SHAPE))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.2, 2.0)
    return model.to(dtype).eval()


@pytest.mark.parametrize(
    ("name", "norms"),
    [("Qwen2", 2 * 2 + 1), ("Qwen3", 2 * 4 + 1), ("Llama", 2 * 2 + 1), ("Gemma2", 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_torch_computes_alike_is_replaced_and_the_model_answers_as_before(
    name: str, norms: int, dtype: Any
) -> None:
    model = model_of(name, dtype)
    ids = torch.arange(1, 30)[None]
    with torch.inference_mode():
        before = model(ids).logits.float()
        assert fuse_norms(model) == norms, "Gemma's norms scale by one more than their weight"
        after = model(ids).logits.float()

    assert float((before - after).norm() / before.norm()) < (1e-5 if dtype is torch.float32 else 0.03)


def test_a_norm_that_differs_is_left_as_it_is() -> None:
    model = model_of("Llama", torch.float32)
    odd = model.model.norm
    odd.variance_epsilon = 1.0  # read by torch's, while this one's own code adds something else
    own = type(odd).forward
    odd.forward = lambda rows: own(odd, rows) * 1.001

    assert fuse_norms(model) == 2 * 2
