"""Packed prompts see themselves and the prefix, and nothing else; whatever the architecture makes of attention."""

from __future__ import annotations

import random
import sys
from array import array
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from worker.device.engines import packing  # noqa: E402
from worker.device.engines.cpu import LaidOutLinear, lay_out  # noqa: E402
from worker.device.engines.packing import Pack, packed_attention  # noqa: E402
from worker.device.engines.transformers import TransformersEngine  # noqa: E402

VOCABULARY = 301
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WINDOW = 32
ARCHITECTURES = {
    "Qwen2": {},
    "Qwen3": {},
    "Llama": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "Gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "Granite": {"logits_scaling": 2.0, "attention_multiplier": 0.5},
    "Glm": {},
}
PREFIX = array("i", range(7, 27))
LABELS = ((5,), (17,), (40,))


def save(folder: Path, architecture: str) -> Path:
    torch.manual_seed(0)
    name = {"Gemma3": "Gemma3Text"}.get(architecture, architecture)
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **ARCHITECTURES[architecture]})
    getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(folder)
    return folder


def prompts(seed: int, *, prefix: bool = True) -> list[array[int]]:
    rng = random.Random(seed)
    lengths = [1, 2, 40, *(rng.randint(1, 60) for _ in range(6))]
    head = PREFIX if prefix else array("i")
    return [head + array("i", [rng.randrange(VOCABULARY) for _ in range(length)]) for length in lengths]


def expected(folder: Path, prompt: array[int]) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        row = model.eval()(torch.tensor([list(prompt)])).logits[0, -1].log_softmax(-1)
    return [float(row[label[0]]) for label in LABELS]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_scores_equal_one_plain_forward_per_prompt(tmp_path: Path, architecture: str) -> None:
    folder = save(tmp_path, architecture)
    engine = TransformersEngine(folder, prefix_ids=PREFIX)
    batch = prompts(1) + prompts(2, prefix=False)

    rows = engine.score(batch, LABELS)

    assert engine.info.packs
    assert engine.info.prefix_tokens == len(PREFIX)
    for prompt, row in zip(batch, rows, strict=True):
        assert row == pytest.approx(expected(folder, prompt), abs=2e-4)


def test_long_prompts_are_packed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LONGEST_PRODUCT", 8)
    folder = save(tmp_path, "Qwen2")

    rows = TransformersEngine(folder, prefix_ids=PREFIX).score(prompts(3), LABELS)

    for prompt, row in zip(prompts(3), rows, strict=True):
        assert row == pytest.approx(expected(folder, prompt), abs=2e-4)


def test_generation_after_packed_scores_is_what_it_was_before(tmp_path: Path) -> None:
    engine = TransformersEngine(save(tmp_path, "Llama"), prefix_ids=PREFIX)
    before = engine.generate(prompts(4), max_new_tokens=8, stop_ids=())
    engine.score(prompts(4), LABELS)

    assert engine.generate(prompts(4), max_new_tokens=8, stop_ids=()) == before


@pytest.mark.parametrize("special", ["s_aux", "position_bias"])
def test_attention_of_another_kind_is_refused_and_not_guessed(special: str) -> None:
    module = torch.nn.Module()
    module.layer_idx, module.is_causal = 0, True
    states = torch.zeros(1, 2, 3, 4)

    with pytest.raises(TypeError, match=special):
        packed_attention(module, states, states, states, None, pack=Pack([3], []), **{special: torch.zeros(1)})


def varlen_attn(
    query: Any, key: Any, value: Any, *ragged: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool
) -> Any:
    """What torch documents of its variable-length kernel, one sequence at a time: the last query sees the last key."""
    assert enable_gqa
    starts, key_starts, longest, longest_key = ragged
    assert (longest, longest_key) == (int(starts.diff().max()), int(key_starts.diff().max()))
    output = []
    for begin, end, first, last in zip(starts, starts[1:], key_starts, key_starts[1:], strict=False):
        q, k, v = (rows.transpose(0, 1) for rows in (query[begin:end], key[first:last], value[first:last]))
        behind = torch.arange(k.shape[1])[None] - torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
        seen = (behind <= window_size[1]) & ((behind >= -window_size[0]) | (window_size[0] < 0))
        done = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, scale=scale, enable_gqa=True
        )
        output.append(done[0].transpose(0, 1))
    return torch.cat(output)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    prefix=st.integers(0, 5),
    window=st.none() | st.integers(1, 8),
)
@settings(deadline=None)
def test_the_ragged_kernel_is_asked_for_the_same_attention_as_the_products_compute(
    lengths: list[int], prefix: int, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    heads, key_heads, size, total = 4, 2, 8, sum(lengths)

    def states(heads: int, ids: int) -> Any:
        # As a model hands them over: ids first in memory, heads first in shape.
        return torch.randn(1, ids, heads, size, generator=generator).transpose(1, 2)

    before = [(states(key_heads, prefix), states(key_heads, prefix))] if prefix else []
    query, key, value = states(heads, total), states(key_heads, total), states(key_heads, total)
    module = torch.nn.Module()
    module.layer_idx, module.is_causal = 0, True
    products, _ = packed_attention(module, query, key, value, None, pack=Pack(lengths, before), sliding_window=window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
        packing.varlen_kernel.cache_clear()
        ragged = packing.ragged_attention(
            query, key, value, Pack(lengths, before), layer=0, scale=size**-0.5, sliding_window=window
        )
    packing.varlen_kernel.cache_clear()

    torch.testing.assert_close(ragged, products)


@pytest.fixture(scope="module")
def deterministic(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save(tmp_path_factory.mktemp("fixed"), "Qwen2")
    return folder, TransformersEngine(
        folder, dtype="bfloat16", prefix_ids=PREFIX, deterministic=True, max_batch_tokens=256
    )


@pytest.mark.parametrize("seed", range(4))
def test_with_fixed_shapes_no_score_depends_on_its_neighbours(deterministic: Any, seed: int) -> None:
    _, engine = deterministic
    batch = prompts(seed) + prompts(seed + 10, prefix=False)
    alone = {tuple(prompt): engine.score([prompt], LABELS)[0] for prompt in batch}
    random.Random(seed).shuffle(batch)

    assert engine.score(batch, LABELS) == [alone[tuple(prompt)] for prompt in batch]


def test_fixed_shapes_give_the_same_scores_within_rounding_and_another_fingerprint(deterministic: Any) -> None:
    folder, engine = deterministic
    packed = TransformersEngine(folder, dtype="bfloat16", prefix_ids=PREFIX)

    for mine, other in zip(engine.score(prompts(5), LABELS), packed.score(prompts(5), LABELS), strict=True):
        assert mine == pytest.approx(other, abs=0.15)
    assert engine.info.engine != packed.info.engine


def test_the_linear_layers_of_a_bfloat16_model_are_laid_out_and_answer_as_before() -> None:
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**SHAPE, "initializer_range": 0.1}))
    model = model.to(torch.bfloat16).eval()
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        before = model(ids).logits.float()
        replaced = lay_out(model)
        after = model(ids).logits.float()

    assert float((before - after).norm() / before.norm()) < 0.03
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert replaced == SHAPE["num_hidden_layers"] * (4 + 3 + 1)
        assert not isinstance(model.lm_head, LaidOutLinear), "the head is read one row per prompt"
    else:
        assert replaced == 0


def test_other_dtypes_are_left_alone() -> None:
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)).eval()

    assert lay_out(model) == 0


def test_the_ragged_kernel_is_looked_up_once_and_a_torch_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def counted(function: Any) -> Any:
        asked.append(function)
        return signature(function)

    def too_old(query: Any, key: Any, value: Any, *, is_causal: bool) -> None: ...

    monkeypatch.setattr(packing, "signature", counted)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    packing.varlen_kernel.cache_clear()
    assert packing.varlen_kernel() is packing.varlen_kernel()
    assert len(asked) == 1
    for broken in (too_old, None):
        packing.varlen_kernel.cache_clear()
        if broken is None:
            monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
        else:
            monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", broken)
        with pytest.raises(TypeError, match="ragged rows"):
            packing.varlen_kernel()
    packing.varlen_kernel.cache_clear()


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 4))
def test_places_in_a_row_are_those_of_a_loop_over_its_prompts(lengths: list[int], prefix: int) -> None:
    before = [(torch.zeros(1, 1, prefix, 2), torch.zeros(1, 1, prefix, 2))] if prefix else []
    pack = Pack(lengths, before)
    positions, sources, end = [], [], 0
    for n in lengths:
        positions += range(prefix, prefix + n)
        sources += [*range(prefix), *range(prefix + end, prefix + end + n)]
        end += n
    assert pack.position_ids(torch.device("cpu")).tolist() == [positions]
    assert pack.copied().tolist() == sources
    assert pack.last().tolist() == [sum(lengths[: at + 1]) - 1 for at in range(len(lengths))]
