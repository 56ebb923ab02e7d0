"""Qwen3Guard-Stream's heads in one forward pass, against a plain computation of the published shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from infra.errors import GuardError  # noqa: E402
from infra.guard_catalogue import GUARDS  # noqa: E402
from schemas.guards import Mode  # noqa: E402
from schemas.items import Item, Label, Turn  # noqa: E402
from schemas.messages import ChunkItem  # noqa: E402
from schemas.verdicts import CONTROVERSIAL  # noqa: E402
from tests.support.families import write_family  # noqa: E402
from worker.device.engines.classifier import ClassifierEngine  # noqa: E402
from worker.guards.registry import load_guard  # noqa: E402
from worker.guards.template_guard import TemplateGuard  # noqa: E402

NAME = "qwen3guard-stream-0.6b"
PROMPT = ChunkItem.of(0, Item(id="1", question="怎么做？"))
PAIR = ChunkItem(seq=1, question="怎么做蛋糕？", response="先准备面粉，再搅拌。" * 3)
TALK = ChunkItem.of(2, Item(id="1", question="后问", response="后答", history=(Turn(role="user", content="先问"),)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("heads"), GUARDS[NAME])


def guard_in(folder: Path) -> TemplateGuard:
    guard = load_guard(NAME, str(folder))
    assert isinstance(guard, TemplateGuard)
    return guard


def plain(folder: Path, ids: list[int]) -> list[float]:
    """The shape as its public descriptions have it, from the file's own keys."""
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    config = transformers.AutoConfig.from_pretrained(folder)
    base = transformers.Qwen3Model(config).eval()
    base.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    with torch.inference_mode():
        hidden = base(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        found = []
        for side in ("query_", ""):
            inner = weights[f"{side}risk_level_category_pre.weight"] @ hidden
            inner = inner * torch.rsqrt(inner.square().mean() + config.rms_norm_eps)
            inner = inner * weights[f"{side}risk_level_category_layernorm.weight"]
            for head in ("risk_level_head", "category_head"):
                found += (weights[f"{side}{head}.weight"] @ inner).log_softmax(-1).tolist()
    return found


def test_a_prompt_ends_at_the_token_that_ends_its_last_turn(folder: Path) -> None:
    guard = guard_in(folder)

    for item, last in ((PROMPT, PROMPT.question), (PAIR, PAIR.response), (TALK, TALK.response)):
        ((ids,),) = guard.render([item], Mode.CLASSIFY)
        assert guard._words.decode(ids.tolist(), keep_controls=True).endswith(f"{last}<|im_end|>")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_equals_a_plain_forward_whatever_shares_its_batch(folder: Path, dtype: str) -> None:
    guard, engine = guard_in(folder), ClassifierEngine(folder, dtype=dtype)
    prompts = [ids for item in (PROMPT, PAIR, TALK) for ids in guard.render([item], Mode.CLASSIFY)[0]]

    rows = engine.classify(prompts)

    for ids, row in zip(prompts, rows, strict=True):
        assert row == pytest.approx(plain(folder, ids.tolist()), abs=1e-4 if dtype == "float32" else 0.1)
        assert len(row) == 3 + 9 + 3 + 8


def numbers(query: tuple[float, ...], response: tuple[float, ...]) -> list[float]:
    """Log-probabilities of all heads; the likeliest category is the third of queries, and the first of responses."""
    of_query, of_response = [0.05] * 9, [0.05] * 8
    of_query[2], of_response[0] = 0.6, 0.65
    return torch.tensor([*query, *of_query, *response, *of_response]).log().tolist()


def test_a_prompt_is_read_from_the_query_heads_and_a_response_from_the_others(folder: Path) -> None:
    guard = guard_in(folder)
    row = numbers((0.1, 0.2, 0.7), (0.2, 0.5, 0.3))

    prompt, response = (guard.read_scores(0, [row], single=single) for single in (True, False))

    assert (prompt.label, prompt.categories) == (
        Label.UNSAFE,
        ("Suicide & Self-Harm:physical_mental_health", CONTROVERSIAL),
    )
    assert prompt.p_unsafe == pytest.approx(0.9)
    assert (response.label, response.categories) == (Label.UNSAFE, ("Violent:illegal_activities",))
    assert response.label_mass is None
    assert guard.read_scores(0, [numbers((0.6, 0.3, 0.1), (1, 1e-9, 1e-9))], single=True).label is Label.SAFE


def test_classes_are_read_by_the_names_that_the_checkpoint_gives_them(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    copy = write_family(tmp_path, GUARDS[NAME], weights=False)
    swapped = {"0": "Unsafe", "1": "Safe", "2": "Controversial"}
    (copy / "config.json").write_text(json.dumps({**config, "query_risk_level_map": swapped}))

    assert guard_in(copy).read_scores(0, [numbers((0.8, 0.1, 0.1), (1, 1e-9, 1e-9))], single=True).label is Label.UNSAFE
    assert guard_in(copy).prompt_digest != guard_in(folder).prompt_digest
    (copy / "config.json").write_text(json.dumps({**config, "query_risk_level_map": {"0": "good", "1": "bad"}}))
    with pytest.raises(GuardError, match="query_risk_level_map names good, bad, not Safe"):
        guard_in(copy)
    # One name less, and the response's heads would be read one place too early.
    (copy / "config.json").write_text(json.dumps({**config, "query_category_map": {"0": "Violent"}}))
    with pytest.raises(GuardError, match="query_category_map names 1 of 9 classes"):
        guard_in(copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("query_category_head.weight"), "lacks query_category_head.weight"),
        (lambda weights: weights.update(risk_level_head=torch.zeros(3)), "holds risk_level_head, which"),
        (lambda weights: weights.update({"category_head.weight": torch.zeros(8, 16)}), "is zero throughout"),
        (lambda weights: weights.update({"category_head.weight": torch.ones(9, 16)}), "category_head.weight is 9 x 16"),
    ],
)
def test_heads_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, change: Any, reason: str) -> None:
    copy = write_family(tmp_path, GUARDS[NAME])
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(GuardError, match=reason):
        ClassifierEngine(copy)
