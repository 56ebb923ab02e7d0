"""Where the loss looks: at the answer, all of it, and at nothing else."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from recipes.libra_tiny.tokenizer import TURN_END, control_ids, encode_plain
from recipes.libra_tiny.train import IGNORED, TokenizerEncoder, batches, collate, common_prefix
from worker.guards.libra import PREFILL
from worker.training.examples import Example, answer_text
from worker.training.samples import Sample


@pytest.fixture(scope="module")
def examples(rows: list[Sample], tokenizer: Tokenizer) -> list[Example]:
    encoder = TokenizerEncoder(tokenizer)
    return [encoder.encode(row) for row in rows]


def test_the_answer_is_the_reference_json_and_the_turns_end(
    rows: list[Sample], examples: list[Example], tokenizer: Tokenizer
) -> None:
    for row, example in zip(rows[:20], examples, strict=False):
        *answer, end = example.ids[example.answer :]
        assert tokenizer.decode(answer) == answer_text(row.label, row.analysis)
        assert end == control_ids(tokenizer)[TURN_END]


def test_targets_are_exactly_the_answers_tokens(examples: list[Example]) -> None:
    prefix = len(common_prefix(examples))
    chosen = examples[:7]
    batch = collate(chosen, prefix, pad=0, label_weight=3.0)
    for example, targets in zip(chosen, batch.targets.tolist(), strict=True):
        assert [target for target in targets if target != IGNORED] == example.ids[example.answer :].tolist()


def test_every_target_is_read_one_place_before_it(examples: list[Example]) -> None:
    prefix = common_prefix(examples)
    chosen = examples[:7]
    batch = collate(chosen, len(prefix), pad=0, label_weight=3.0)
    for number, example in enumerate(chosen):
        inputs = [*prefix, *batch.ids[number].tolist()]
        count = len(example.ids) - example.answer
        for place, target in zip(batch.places[number][:count].tolist(), example.ids[example.answer :], strict=True):
            at = place + len(prefix)
            assert inputs[: at + 1] == example.ids[: at + 1].tolist()
            assert example.ids[at + 1] == target


def test_the_label_weighs_more_and_padding_nothing(examples: list[Example], tokenizer: Tokenizer) -> None:
    batch = collate(examples[:7], 0, pad=0, label_weight=3.0)
    place = len(encode_plain(tokenizer, PREFILL))
    assert batch.weights[:, place].tolist() == [3.0] * 7
    assert batch.weights[batch.targets == IGNORED].sum().item() == 0


def test_the_prefix_ends_before_the_users_text(examples: list[Example], tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(common_prefix(examples), skip_special_tokens=True)
    assert text.endswith("人类的问题：")


def test_every_example_is_in_one_batch(examples: list[Example]) -> None:
    found = [id(example) for chosen in batches(examples, 8, seed=1) for example in chosen]
    assert sorted(found) == sorted(map(id, examples))


def test_the_same_seed_gives_the_same_batches(examples: list[Example]) -> None:
    one, same, other = (list(batches(examples, 8, seed)) for seed in (1, 1, 2))
    assert one == same != other
