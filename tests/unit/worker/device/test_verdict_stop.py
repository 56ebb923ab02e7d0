"""A generation that ends with its verdict is the beginning of the whole one, whatever shares its batch."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from producer.datasets import open_dataset, valid_items, validate  # noqa: E402
from schemas.guards import Mode  # noqa: E402
from schemas.messages import ChunkItem  # noqa: E402
from tests.support.checkpoints import qwen_tokenizer_json, write_checkpoint  # noqa: E402
from worker.device.engines.transformers import (  # noqa: E402
    TransformersEngine,
    VerdictKnown,
    until_verdict,
)
from worker.guards.libra import PREFILL, LibraGuard  # noqa: E402
from worker.guards.registry import load_guard, resolve_checkpoint  # noqa: E402

VOCABULARY = 40
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """A random model of few ids, so that short sequences come up soon and at different places."""
    torch.manual_seed(3)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return TransformersEngine(folder)


def prompts(count: int) -> list[array[int]]:
    rng = random.Random(5)
    return [array("i", [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))]) for _ in range(count)]


def count_steps(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    forward, steps = engine._model.forward, []

    def counted(*arguments: Any, **options: Any) -> Any:
        steps.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(engine._model, "forward", counted)
    return steps


@pytest.mark.parametrize("stop_ids", [(), (1, 2)])
def test_each_row_ends_with_the_first_sequence_in_it(engine: TransformersEngine, stop_ids: Sequence[int]) -> None:
    asked = prompts(12)
    whole = engine.generate(asked, max_new_tokens=20, stop_ids=stop_ids)
    # The prompts' own ids are among the sequences: a verdict is looked for in what is new only.
    sequences = [tuple(row[at : at + 2]) for at, row in enumerate(whole) if at % 2 and len(row) > at + 2]
    sequences += [tuple(prompt[-2:]) for prompt in asked[:3]]

    cut = engine.generate(asked, max_new_tokens=20, stop_ids=stop_ids, verdict_ids=sequences)

    assert cut == [tuple(until_verdict(row, sequences)) for row in whole]
    assert {len(row) < len(full) for row, full in zip(cut, whole, strict=True)} == {True, False}


def test_nothing_is_decoded_once_every_row_has_its_verdict(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(6)
    whole = engine.generate(asked, max_new_tokens=20, stop_ids=())
    steps = count_steps(engine, monkeypatch)

    engine.generate(asked, max_new_tokens=20, stop_ids=(), verdict_ids=[row[:2] for row in whole])

    assert len(steps) == 2


@given(st.lists(st.integers(0, 2), max_size=12), SEQUENCES)
def test_a_row_is_cut_where_the_first_sequence_ends(row: list[int], sequences: list[list[int]]) -> None:
    cut = until_verdict(row, sequences)

    assert row[: len(cut)] == cut
    ends = [end for s in sequences for end in range(len(s), len(row) + 1) if row[end - len(s) : end] == s]
    assert len(cut) == min(ends, default=len(row))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), SEQUENCES, st.integers(0, 4))
def test_the_criterion_ends_a_row_where_it_is_cut(row: list[int], sequences: list[list[int]], before: int) -> None:
    known = VerdictKnown(sequences, prompt_tokens=before, device=torch.device("cpu"))
    ids = torch.tensor([[0] * before + row])
    ended = [length for length in range(1, len(row) + 1) if bool(known(ids[:, : before + length], None)[0])]

    cut = until_verdict(row, sequences)
    assert (ended[0] if ended else len(row)) == len(cut)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> LibraGuard:
    """Libra Guard with Qwen's own tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen"), qwen_tokenizer_json())
    return LibraGuard(folder, name="qwen", model="qwen")


ANSWERS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "```json\n", "好的：", "{}\n"]),
    st.sampled_from([PREFILL, '{"答案": "', '{"答案":"', '{"答案"： "', "{“答案”：“", "{'答案': '"]),
    st.sampled_from(['安全"', '不安全"', "安全", '安全性"', '安全 "', "不安全'", "不安全”"]),
    st.sampled_from([', "分析": "', ',\n  "分析": "', "，“分析”：“", '\n"分析": "', " 或", ";"]),
    st.text(st.sampled_from("：:,， \n分析答案安全不a。"), max_size=20),
)
ENDS = st.sampled_from(["", '"}', '"\n}', '"}\n```', "”}"])


@given(ANSWERS, ENDS, st.integers(0, 40))
def test_an_answer_of_one_object_that_stops_at_its_verdict_is_read_as_the_whole_one(
    qwen: LibraGuard, answer: str, end: str, seam: int
) -> None:
    text = answer + end
    # A model may also write in two tokens what the tokenizer would merge.
    whole = [token for piece in (text[:seam], text[seam:]) for token in qwen._chat.words.text_ids(piece)]

    cut = until_verdict(whole, qwen.verdict_ids)

    assert qwen.read_ids(0, [cut]).label is qwen.read_ids(0, [whole]).label


@pytest.mark.parametrize("word", ["安全", "不安全"])
@pytest.mark.parametrize("end", ['",\n  "分析": "', '"\n}', '"}'])
def test_the_reference_form_is_cut_right_after_its_word(qwen: LibraGuard, word: str, end: str) -> None:
    cut = until_verdict(qwen._chat.words.text_ids(f'{PREFILL}{word}{end}这段回答没有问题。"'), qwen.verdict_ids)

    ends = {f'{PREFILL}{word}"{confirmed}' for confirmed in (",", "}", "\n}")}
    assert qwen._chat.words.decode(cut).rstrip() in ends


def test_labels_of_the_demo_set_are_those_of_the_whole_texts() -> None:
    guard = load_guard("libra-tiny")
    engine = TransformersEngine(resolve_checkpoint("libra-tiny"), max_batch_tokens=65_536)
    with open_dataset("demo") as dataset:
        items = [row.item for row in valid_items(dataset, validate(dataset))][:48]
    chunk = [ChunkItem(seq=at, question=item.question, response=item.response) for at, item in enumerate(items)]
    asked = [window for windows in guard.render(chunk, Mode.GENERATE) for window in windows]
    options: dict[str, Any] = {"max_new_tokens": guard.max_new_tokens, "stop_ids": guard.stop_ids}

    whole = engine.generate(asked, **options)
    cut = engine.generate(asked, **options, verdict_ids=guard.verdict_ids)

    assert [guard.read_ids(0, [row]).label for row in cut] == [guard.read_ids(0, [row]).label for row in whole]
    assert sum(map(len, cut)) < sum(map(len, whole))
