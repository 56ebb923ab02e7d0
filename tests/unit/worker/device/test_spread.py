"""A model whose layers lie on two devices, as accelerate places them: the second one computes shapes without content.

Tensors of a CUDA device cannot be made without one, so that the meta device stands for the last GPU here.
"""

from __future__ import annotations

from array import array
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate_hooks = pytest.importorskip("accelerate.hooks")

from worker.device.engines import packing  # noqa: E402
from worker.device.engines import transformers as engine_module  # noqa: E402
from worker.device.engines.packing import Pack  # noqa: E402
from worker.device.engines.transformers import TransformersEngine  # noqa: E402

FIRST, LAST = torch.device("cpu"), torch.device("meta")
PREFIX_TOKENS = 5


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices to which places were sent, in order."""
    devices: list[Any] = []

    def send(tensor: Any, device: Any) -> Any:
        devices.append(torch.device(device))
        return tensor.to(device)

    for module in (packing, engine_module):
        monkeypatch.setattr(module, "send", send)
    return devices


def spread_model() -> Any:
    config = transformers.Qwen2Config(
        vocab_size=301,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    for name in ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head"):
        device = FIRST if name in ("model.embed_tokens", "model.rotary_emb", "model.layers.0") else LAST
        part = model.get_submodule(name).to(device)
        accelerate_hooks.add_hook_to_module(part, accelerate_hooks.AlignDevicesHook(execution_device=device))
    root = accelerate_hooks.AlignDevicesHook(execution_device=FIRST)  # it moves what it is given to the first device
    accelerate_hooks.add_hook_to_module(model, root)
    return model


def engine_of(model: Any) -> TransformersEngine:
    """The engine as it is once loaded, without the loading."""
    engine = object.__new__(TransformersEngine)
    engine._model, engine._head, engine._device = model, model.get_output_embeddings(), FIRST
    engine._own_attention, engine._packs, engine._deterministic = "sdpa", True, False
    engine._prefix, engine._prefix_states, engine._asked = array("i"), [], ()
    engine._watch_head()
    return engine


@pytest.mark.parametrize("prefix", [False, True])
def test_a_model_on_two_devices_runs_packed_and_reads_its_rows_where_they_lie(sent: list[Any], prefix: bool) -> None:
    engine = engine_of(spread_model())
    states = [tuple(torch.empty(1, 2, PREFIX_TOKENS, 12, device=device) for _ in range(2)) for device in (FIRST, LAST)]
    prompts = [array("i", range(1, 1 + n)) for n in (4, 9, 1)]

    logits = engine._last_logits(prompts, states if prefix else [])  # type: ignore[arg-type]

    assert (tuple(logits.shape), logits.device) == ((3, 301), LAST)
    assert sent[-1] == LAST, "an index on the first device is refused by CUDA where the hidden states lie on the last"


def test_labels_are_read_where_the_last_layer_lies(sent: list[Any]) -> None:
    engine = engine_of(spread_model())

    table = engine._label_logprobs([array("i", [1, 2, 3]), array("i", [4])], [(5,), (17,)])

    assert (tuple(table.shape), table.dtype, table.device) == ((2, 2), torch.float32, LAST)
    assert sent[-1] == LAST


def test_each_device_has_its_own_copy_of_where_the_prefix_goes(sent: list[Any]) -> None:
    def states(ids: int, device: Any) -> Any:
        return torch.zeros(1, 2, ids, 4, device=device)

    pack = Pack([3, 2], [(states(PREFIX_TOKENS, device), states(PREFIX_TOKENS, device)) for device in (FIRST, LAST)])
    for layer, device in enumerate((FIRST, LAST)):
        keys, values = pack.extended_row(layer, states(5, device), states(5, device))
        assert keys.shape == values.shape == (2 * PREFIX_TOKENS + 5, 2, 4)
        assert keys.device == device
    assert sent == [FIRST, LAST]
