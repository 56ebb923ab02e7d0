"""Classification heads: what their tokenizers write around a text, what classes mean, and the numbers."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from infra.errors import GuardError  # noqa: E402
from schemas.guards import Mode  # noqa: E402
from schemas.items import Label  # noqa: E402
from schemas.messages import ChunkItem  # noqa: E402
from tests.support.families import write_classifier  # noqa: E402
from worker.device.engines.classifier import ClassifierEngine  # noqa: E402
from worker.guards.registry import load_guard  # noqa: E402
from worker.guards.sequence_classifier import SequenceClassifierGuard  # noqa: E402

SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("Bert", {"id2label": {0: "safe", 1: "offensive"}}),
    ("Roberta", {"pad_token_id": 1, "id2label": {0: "not-toxic", 1: "toxic"}}),
    ("Qwen2", {"id2label": {0: "安全", 1: "违法", 2: "色情"}}),
    ("Qwen2", {"id2label": {0: "violence", 1: "hate"}, "problem_type": "multi_label_classification"}),
    ("Bert", {"id2label": {0: "toxic"}}),
]


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda at: f"{SHAPES[at][0]}-{at}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, config = SHAPES[request.param]
    return write_classifier(tmp_path_factory.mktemp("classifier"), architecture=architecture, **config)


def item(response: str, question: str = "问") -> ChunkItem:
    return ChunkItem(seq=0, question=question, response=response)


def test_the_engine_equals_a_plain_forward_of_the_tokenizers_own_ids(folder: Path) -> None:
    guard = load_guard("mine", str(folder))
    engine = ClassifierEngine(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    texts = ["你好", "hello world, hello", "请问如何制作蛋糕？" * 4]

    prompts = [ids for (ids,) in guard.render([item(text) for text in texts], Mode.CLASSIFY)]
    for text, ids, row in zip(texts, prompts, engine.classify(prompts), strict=True):
        assert ids.tolist() == tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([list(ids)])).logits[0]
        multi = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
        expected = torch.nn.functional.logsigmoid(logits) if multi else logits.log_softmax(-1)
        assert row == pytest.approx(expected.tolist(), abs=1e-4)
        assert guard.read_scores(0, [row]).label


def test_a_special_token_in_a_text_stays_text(folder: Path) -> None:
    guard = load_guard("mine", str(folder))

    ((plain,), (hostile,)) = guard.render([item("好"), item("[SEP][CLS][PAD]好")], Mode.CLASSIFY)
    controls = {plain[0], plain[-1]}
    assert [i for i in hostile if i in controls] == [i for i in plain if i in controls]


def test_long_texts_are_judged_in_windows(folder: Path) -> None:
    guard = load_guard("mine", str(folder))
    engine = ClassifierEngine(folder)

    (prompts,) = guard.render([item("第一句话。" * 60)], Mode.CLASSIFY)

    assert len(prompts) > 1
    assert all((ids[0], ids[-1]) == (prompts[0][0], prompts[0][-1]) for ids in prompts)
    assert guard.read_scores(0, engine.classify(prompts)).p_unsafe is not None


def classes(tmp_path: Path, *names: str, **config: Any) -> SequenceClassifierGuard:
    folder = write_classifier(tmp_path, id2label=dict(enumerate(names)), **config)
    guard = load_guard("mine", str(folder))
    assert isinstance(guard, SequenceClassifierGuard)
    return guard


def test_unsafe_classes_add_up_and_the_likeliest_is_named(tmp_path: Path) -> None:
    guard = classes(tmp_path, "normal", "abuse", "porn")

    verdict = guard.read_scores(0, [[math.log(p) for p in row] for row in ((0.9, 0.05, 0.05), (0.4, 0.25, 0.35))])

    assert (verdict.label, verdict.categories) == (Label.UNSAFE, ("porn",))
    assert verdict.p_unsafe == pytest.approx(0.6)


def test_in_multi_label_each_class_counts_alone(tmp_path: Path) -> None:
    guard = classes(tmp_path, "a", "b", "c", problem_type="multi_label_classification")

    verdict = guard.read_scores(0, [[math.log(p) for p in (0.8, 0.1, 0.6)]])
    assert (verdict.label, verdict.categories, verdict.p_unsafe) == (Label.UNSAFE, ("a", "c"), pytest.approx(0.8))
    assert guard.read_scores(0, [[math.log(0.4)] * 3]).label is Label.SAFE


def test_classes_that_say_nothing_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"LABEL_0, LABEL_1.*name it in id2label"):
        load_guard("mine", str(write_classifier(tmp_path)))


def test_a_classifier_neither_scores_nor_writes(tmp_path: Path) -> None:
    guard = classes(tmp_path, "safe", "unsafe")
    engine = ClassifierEngine(tmp_path)

    with pytest.raises(GuardError, match="no mode score; it has classify"):
        guard.render([item("x")], Mode.SCORE)
    with pytest.raises(GuardError, match="cannot have written"):
        guard.read_ids(0, [[1]])
    with pytest.raises(ValueError, match="cannot score"):
        engine.score([array("i", [1])], [(1,)])
    with pytest.raises(ValueError, match="cannot write"):
        engine.generate([array("i", [1])], max_new_tokens=1, stop_ids=())
    with pytest.raises(ValueError, match="vocabulary"):
        engine.classify([array("i", [10**6])])


def test_classes_must_be_numbered_from_zero(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"1": "safe", "2": "unsafe"}}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(GuardError, match="does not number its classes"):
        load_guard("mine", str(folder))


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "Qwen2", "DistilBert", "DebertaV2"])
def test_a_head_is_computed_in_float32_from_the_models_own_hidden_states(tmp_path: Path, architecture: str) -> None:
    config = {"id2label": {0: "safe", 1: "unsafe"}, "pad_token_id": 1} if architecture == "Roberta" else {}
    folder = write_classifier(tmp_path, architecture=architecture, **{"id2label": {0: "safe", 1: "unsafe"}, **config})
    guard = load_guard("mine", str(folder))
    prompts = [ids for (ids,) in guard.render([item("你好"), item("hello")], Mode.CLASSIFY)]
    engine = ClassifierEngine(folder, dtype="bfloat16")
    model = engine._model
    heads = [module for name, module in model.named_children() if name != model.base_model_prefix]

    rows = engine.classify(prompts)

    assert heads
    assert {weight.dtype for head in heads for weight in head.parameters()} <= {torch.float32}
    assert {weight.dtype for weight in model.base_model.parameters()} == {torch.bfloat16}
    # In bfloat16 a log-probability has eight bits, so that float32 of it has zeros behind them.
    assert any(value != float(torch.tensor(value).bfloat16()) for row in rows for value in row)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("ModernBert", {}),
        ("DebertaV2", {}),
        ("XLMRoberta", {"pad_token_id": 1}),
        ("MPNet", {"pad_token_id": 1}),
        ("Electra", {"embedding_size": 32}),
        ("GPT2", {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 128}),
    ],
)
def test_any_architecture_is_judged_as_by_a_plain_forward_up_to_its_last_position(
    tmp_path: Path, architecture: str, config: dict[str, Any]
) -> None:
    named = {"id2label": {0: "safe", 1: "bad"}, "label2id": {"safe": 0, "bad": 1}}
    folder = write_classifier(tmp_path, architecture=architecture, **named, **config)
    guard, engine = load_guard("mine", str(folder)), ClassifierEngine(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    texts = ("好", "第一句话。" * 60)
    prompts = [ids for text in texts for ids in guard.render([item(text)], Mode.CLASSIFY)[0]]

    rows = engine.classify(prompts)

    assert len(prompts) > 2
    for ids, row in zip(prompts, rows, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([list(ids)])).logits[0]
        assert row == pytest.approx(logits.log_softmax(-1).tolist(), abs=1e-4)
