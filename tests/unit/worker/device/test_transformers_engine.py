"""The transformers engine against plain Hugging Face forwards, on tiny random checkpoints."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from infra.errors import GuardError  # noqa: E402
from worker.device.engines.base import DeviceLost, OutOfMemory  # noqa: E402
from worker.device.engines.loading import padded  # noqa: E402
from worker.device.engines.transformers import TransformersEngine  # noqa: E402
from worker.guards.digest import checkpoint_digest  # noqa: E402

VOCABULARY = 301
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
LABELS = ((5, 9), (17,), (40, 41, 42))
PREFIX = array("i", [3, 14, 15, 92, 65, 35, 89])


def save(folder: Path, family: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["Qwen2", "Llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def ragged(seed: int, *, prefix: bool, count: int = 9) -> list[array[int]]:
    rng = random.Random(seed)
    head = PREFIX if prefix else array("i")
    return [head + array("i", [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))]) for _ in range(count)]


def plain_logprobs(model: Callable[..., object], ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_plain_forward(checkpoint: Path, model: Any, seed: int, prefix: bool) -> None:
    engine = TransformersEngine(checkpoint, prefix_ids=PREFIX if prefix else ())
    assert engine.info.prefix_tokens == (len(PREFIX) if prefix else 0)
    prompts = ragged(seed, prefix=prefix) + ragged(seed + 50, prefix=False)
    random.Random(seed).shuffle(prompts)
    for prompt, row in zip(prompts, engine.score(prompts, LABELS), strict=True):
        expected = plain_logprobs(model, prompt)[-1, [label[0] for label in LABELS]]
        assert row == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_prompt_that_is_the_prefix_is_scored_plainly(checkpoint: Path, model: Any) -> None:
    [row] = TransformersEngine(checkpoint, prefix_ids=PREFIX).score([PREFIX], LABELS)
    assert row[0] == pytest.approx(float(plain_logprobs(model, PREFIX)[-1, 5]), abs=1e-4)


def test_the_order_of_a_batch_is_irrelevant(checkpoint: Path) -> None:
    engine = TransformersEngine(checkpoint, prefix_ids=PREFIX)
    prompts = ragged(7, prefix=True)
    forth = engine.score(prompts, LABELS)
    back = engine.score(prompts[::-1], LABELS)[::-1]
    for one, other in zip(forth, back, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_labels_that_share_their_first_id_are_scored_whole(checkpoint: Path, model: Any) -> None:
    labels = ((5, 9), (5, 10, 11))
    prompts = ragged(3, prefix=True)
    rows = TransformersEngine(checkpoint, prefix_ids=PREFIX).score(prompts, labels)
    for prompt, row in zip(prompts, rows, strict=True):
        for label, value in zip(labels, row, strict=True):
            table = plain_logprobs(model, [*prompt, *label])
            whole = sum(float(table[len(prompt) - 1 + step, token]) for step, token in enumerate(label))
            assert value == pytest.approx(whole, abs=3e-4)


def test_generation_equals_hugging_face_one_by_one(checkpoint: Path, model: Any) -> None:
    prompts = ragged(11, prefix=False)
    stops = (1, 2, 100, 101, 102, 103, 104, 105, 106)
    rows = TransformersEngine(checkpoint).generate(prompts, max_new_tokens=24, stop_ids=stops)
    lengths = set()
    for prompt, row in zip(prompts, rows, strict=True):
        output = model.generate(
            torch.tensor([list(prompt)]), do_sample=False, max_new_tokens=24, eos_token_id=list(stops), pad_token_id=1
        )
        expected = output[0, len(prompt) :].tolist()
        assert list(row) == (expected[:-1] if expected[-1] in stops else expected)
        lengths.add(len(row))
    assert len(lengths) > 1, "some rows should stop early"


def test_half_precision_keeps_its_short_cuts(checkpoint: Path) -> None:
    engine = TransformersEngine(checkpoint, dtype="bfloat16", prefix_ids=PREFIX)
    assert engine.info.dtype == "bfloat16"
    assert engine.info.prefix_tokens == len(PREFIX)


@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"prefix_ids": PREFIX}])
def test_half_precision_rounds_no_label(checkpoint: Path, options: dict[str, Any]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    labels = ((5,), (17,))
    engine = TransformersEngine(checkpoint, dtype="bfloat16", **options)
    seen: list[torch.Tensor] = []
    engine._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].reshape(-1, SHAPE["hidden_size"])))
    prompt = PREFIX + array("i", [4, 8, 15])
    [row] = engine.score([prompt], labels)
    hidden = seen[-1].float()
    exact = hidden @ (model.lm_head.weight[5].float() - model.lm_head.weight[17].float())
    assert min(abs(float(value) - (row[0] - row[1])) for value in exact) < 1e-4


def test_accelerate_may_place_the_layers(checkpoint: Path, tmp_path: Path) -> None:
    prompts = ragged(5, prefix=True)
    whole = TransformersEngine(checkpoint, prefix_ids=PREFIX).score(prompts, LABELS)
    spread = TransformersEngine(checkpoint, prefix_ids=PREFIX, spread=True, offload_folder=tmp_path)
    for one, other in zip(spread.score(prompts, LABELS), whole, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_an_architecture_whose_head_is_not_the_whole_story_falls_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**{**SHAPE, "head_dim": 12, "final_logit_softcapping": 1.0, "pad_token_id": 0})
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, prefix_ids=PREFIX)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompts = ragged(1, prefix=True)
    for prompt, row in zip(prompts, engine.score(prompts, LABELS), strict=True):
        assert row[0] == pytest.approx(float(plain_logprobs(model, prompt)[-1, 5]), abs=1e-4)


@pytest.mark.parametrize("ids", [[VOCABULARY], [-1], [1, 2, VOCABULARY + 5, 3]])
def test_ids_outside_the_vocabulary_are_refused_before_the_device_sees_them(checkpoint: Path, ids: list[int]) -> None:
    engine = TransformersEngine(checkpoint)
    with pytest.raises(ValueError, match="vocabulary"):
        engine.score([array("i", [1]), array("i", ids)], LABELS)
    with pytest.raises(ValueError, match="vocabulary"):
        engine.generate([array("i", ids)], max_new_tokens=1, stop_ids=())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda: torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (lambda: RuntimeError("CUDA error: device-side assert triggered"), DeviceLost),
        (lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), OutOfMemory),
        (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), OutOfMemory),
        (lambda: RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_torch_errors_are_told_apart(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], expected: type[Exception]
) -> None:
    engine = TransformersEngine(checkpoint)

    def broken(*_: object, **__: object) -> None:
        raise error()

    monkeypatch.setattr(engine._model.base_model, "forward", broken)
    with pytest.raises(expected):
        engine.score([array("i", [1])], LABELS)


def test_the_digest_tells_trainings_apart(tmp_path: Path) -> None:
    one, two, again = (save(tmp_path / name, "Qwen2", seed) for name, seed in (("a", 0), ("b", 1), ("c", 0)))
    assert checkpoint_digest(one) == checkpoint_digest(again) != checkpoint_digest(two)
    assert TransformersEngine(one).info.revision == checkpoint_digest(one)
    assert TransformersEngine(one, revision="abc").info.revision == f"abc:{checkpoint_digest(one)}"


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="safetensors"):
        TransformersEngine(tmp_path)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: an illegal access")])
def test_a_full_or_lost_device_says_nothing_about_a_short_cut(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Once, packing stayed off for the whole life of a process that was loaded while a neighbour held the memory."""

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("worker.device.engines.transformers.Pack", full)
    with pytest.raises((OutOfMemory, DeviceLost)):
        TransformersEngine(checkpoint)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")])
def test_below_ampere_the_type_is_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    from worker.device.engines import loading

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert loading._auto_dtype("cuda:0") == dtype
    assert loading._auto_dtype("cpu") == "float32"


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, "float16"), (20_000.0, "float32")])
def test_a_model_that_overflows_in_float16_runs_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, dtype: str
) -> None:
    from worker.device.engines import loading

    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_auto_dtype", lambda _: "float16")

    engine = TransformersEngine(tmp_path)

    assert engine.info.dtype == dtype
    engine.score([array("i", [1, 2, 3])], ((5,), (17,)))


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=6), st.booleans())
def test_rows_are_padded_on_the_side_that_is_asked_for(rows: list[list[int]], left: bool) -> None:
    longest = max(map(len, rows))
    ids, mask = padded(rows, 77, left=left)
    fill = [[77] * (longest - len(row)) for row in rows]
    shown = [[0] * len(free) for free in fill]
    ones = [[1] * len(row) for row in rows]
    sides = zip(fill, rows, strict=True) if left else zip(rows, fill, strict=True)
    marks = zip(shown, ones, strict=True) if left else zip(ones, shown, strict=True)
    assert ids.tolist() == [[*one, *other] for one, other in sides]
    assert mask.tolist() == [[*one, *other] for one, other in marks]
