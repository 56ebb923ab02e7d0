"""The n-gram table beside the language model: what it counts, and that no way of batching changes it."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.device.engines.transformers import TransformersEngine
from worker.device.ngram_lm import (
    LONGEST,
    NgramQwen2Config,
    NgramQwen2ForCausalLM,
    fields,
    first_occurrences,
    ngram_slots,
)

VOCABULARY = 64
TEXT, ANSWER, END, CUE, SAFE, UNSAFE = 1, 2, 3, 4, 5, 6
HEAD, TAIL = [7, TEXT], [END, 8, CUE]
several = settings(deadline=None, max_examples=25)
words = st.lists(st.integers(10, VOCABULARY - 1), max_size=12)


def config(**changed: float) -> NgramQwen2Config:
    known: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": END,
        "pad_token_id": 0,
        "ngram_slots": 1 << 12,
        "text_id": TEXT,
        "answer_id": ANSWER,
        "end_id": END,
        "cue_id": CUE,
        "safe_id": SAFE,
        "unsafe_id": UNSAFE,
        "ngram_share": 1.0,
    }
    return NgramQwen2Config(**{**known, **changed})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = NgramQwen2ForCausalLM(config())
    model.ngram_weights.data = torch.randn(1 << 12)
    folder = tmp_path_factory.mktemp("ngram")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TransformersEngine:
    """Packs prompts and keeps the states of their common prefix."""
    engine = TransformersEngine(checkpoint, prefix_ids=HEAD)
    assert engine.info.packs
    assert engine.info.prefix_tokens == len(HEAD)
    return engine


def slots_of(ids: list[int], *, inside: bool = False) -> set[int]:
    row = torch.tensor([ids])
    field = fields(row, (len(ids),), config(), inside=inside)
    found = first_occurrences(ngram_slots(row, field, 1 << 40), field.prompt).flatten()
    assert len(found[found > 0]) == len(set(found[found > 0].tolist()))
    return set(found.tolist()) - {0}


def prompt(question: list[int], answer: list[int]) -> array[int]:
    return array("i", [*HEAD, *question, ANSWER, *answer, *TAIL])


@several
@given(words, words)
def test_every_ngram_of_either_text_counts_once(question: list[int], answer: list[int]) -> None:
    texts = {"question": question, "answer": answer, "reply": answer if question else []}
    expected = {
        (field, tuple(text[at : at + n]))
        for field, text in texts.items()
        for n in range(1, LONGEST + 1)
        for at in range(len(text) - n + 1)
    }
    assert len(slots_of(list(prompt(question, answer)))) == len(expected)


@several
@given(words, words)
def test_a_prompt_behind_its_prefix_counts_what_the_whole_one_counts(question: list[int], answer: list[int]) -> None:
    whole = list(prompt(question, answer))
    assert slots_of(whole) == slots_of(whole[len(HEAD) :], inside=True)


def test_examples_before_the_text_and_what_is_written_after_it_do_not_count() -> None:
    plain = list(prompt([20], [21, 22]))
    assert slots_of([7, 30, ANSWER, 31, END, *plain[1:]]) == slots_of(plain) == slots_of([*plain, SAFE, 40, 41])


@several
@given(words)
def test_a_piece_of_the_frame_in_a_text_hides_nothing_of_it(answer: list[int]) -> None:
    hidden = slots_of(list(prompt([], [*answer, TEXT, 50, ANSWER, 51])))
    assert slots_of(list(prompt([], answer))) <= hidden


@several
@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_neighbours_in_a_batch_change_no_score(
    engine: TransformersEngine, dialogues: list[tuple[list[int], list[int]]]
) -> None:
    prompts = [prompt(*dialogue) for dialogue in dialogues]
    together = engine.score(prompts, [[SAFE], [UNSAFE]])
    alone = [engine.score([one], [[SAFE], [UNSAFE]])[0] for one in prompts]
    for mine, theirs in zip(together, alone, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"prefix_ids": HEAD, "deterministic": True}])
def test_no_short_cut_changes_a_score(checkpoint: Path, engine: TransformersEngine, options: dict[str, object]) -> None:
    prompts = [prompt([], [20, 21, 20, 21, 22]), prompt([30, 31], [20, 22]), prompt([], [])]
    other = TransformersEngine(checkpoint, **options)  # type: ignore[arg-type]
    rows = zip(engine.score(prompts, [[SAFE], [UNSAFE]]), other.score(prompts, [[SAFE], [UNSAFE]]), strict=True)
    for mine, theirs in rows:
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_the_margin_is_that_of_the_shares(checkpoint: Path, engine: TransformersEngine) -> None:
    ids = list(prompt([], [20, 21]))
    model = NgramQwen2ForCausalLM.from_pretrained(checkpoint)
    row = torch.tensor([ids])
    slots = ngram_slots(row, fields(row, (len(ids),), config(), inside=False), 1 << 12)
    own = model.lm_head(model.model(input_ids=row).last_hidden_state)[0, -1]
    expected = own[UNSAFE] - own[SAFE] + model.ngram_weights[slots[slots > 0]].sum()
    [(safe, unsafe)] = engine.score([array("i", ids)], [[SAFE], [UNSAFE]])
    assert unsafe - safe == pytest.approx(expected.item(), abs=1e-4)


def test_what_is_written_after_the_cue_is_decided_by_the_same_sum(checkpoint: Path) -> None:
    """With and without the cache: the sum travels on it while the model writes."""
    model = NgramQwen2ForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.tensor([[END, END, *prompt([], [20, 21, 22])[:-1]]])  # padded on the left, the cue not yet written
    with torch.inference_mode():
        first = model(input_ids=ids, use_cache=True)
        cue = torch.tensor([[CUE]])
        stepped = model(input_ids=cue, past_key_values=first.past_key_values, use_cache=True).logits[0, -1]
        whole = model(input_ids=torch.cat([ids, cue], dim=1)).logits[0, -1]
    assert torch.allclose(stepped, whole, atol=1e-4)
