"""Mode score names the category of an unsafe text: what is asked behind the label, with real vocabularies."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from schemas.verdicts import CONTROVERSIAL, CategoriesBy, Outcome, Verdict
from tests.support import vocabularies
from tests.support.checkpoints import CHATML, qwen_tokenizer_json, small_tokenizer, write_checkpoint
from worker.guards.base import Guard
from worker.guards.registry import load_guard

pytestmark = pytest.mark.slow  # real vocabularies take seconds to load

ITEM = ChunkItem(seq=0, question="怎么做？", response="这样做。")


def row(*probabilities: float) -> list[float]:
    return [math.log(p) if p else -math.inf for p in probabilities]


def asked(guard: Guard, tokenizer: Tokenizer, *scores: float) -> str:
    """The text behind the scored prompt, up to where the category stands."""
    (prompts,) = guard.render([ITEM], Mode.SCORE)
    prompt = guard.category_prompt(prompts, [row(*scores)])
    assert prompt is not None
    assert prompt[: len(prompts[0])] == prompts[0]
    text: str = tokenizer.decode(list(prompt[len(prompts[0]) :]), skip_special_tokens=False)
    return text


def choices(guard: Guard, tokenizer: Tokenizer) -> list[str]:
    question = guard.category_question
    assert question is not None
    assert len({ids[0] for ids in question.label_ids}) == len(question.names)
    return [tokenizer.decode(list(ids)) for ids in question.label_ids]


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return qwen_tokenizer_json()


def test_qwen3guard_is_asked_behind_the_severity_that_it_gave(tmp_path: Path, qwen: Tokenizer) -> None:
    folder = vocabularies.write_tokenizer(tmp_path, qwen, template=CHATML, eos_token="<|im_end|>")
    guard = load_guard("qwen3guard-gen-0.6b", str(folder))

    assert asked(guard, qwen, 0.1, 0.7, 0.2) == " Unsafe\nCategories:"
    assert asked(guard, qwen, 0.1, 0.2, 0.7) == " Controversial\nCategories:"
    assert choices(guard, qwen)[:4] == [
        " Violent",
        " Non-violent Illegal Acts",
        " Sexual Content or Sexual Acts",
        " PII",
    ]
    (prompts,) = guard.render([ITEM], Mode.SCORE)
    assert guard.category_prompt(prompts, [row(0.7, 0.2, 0.1)]) is None


@pytest.mark.parametrize(("name", "codes"), [("md-judge-v0.1", "O"), ("llama-guard-7b", "O")])
def test_a_sentencepiece_guard_is_asked_behind_its_code_letter(tmp_path: Path, name: str, codes: str) -> None:
    mistral = vocabularies.mistral_v1(legacy=True)
    template = "[INST] {% for m in messages %}{{ m['content'] }}\n{% endfor %} [/INST]"
    folder = vocabularies.write_tokenizer(tmp_path, mistral, template=template, bos_token="<s>", eos_token="</s>")
    guard = load_guard(name, str(folder))

    assert asked(guard, mistral, 0.1, 0.9).endswith(f"unsafe\n{codes}")
    assert choices(guard, mistral) == ["1", "2", "3", "4", "5", "6"]


def test_llama_guard_3_chooses_among_its_fourteen_codes_in_one_pass(tmp_path: Path) -> None:
    llama_3 = vocabularies.llama_3()
    template = (
        "<|start_header_id|>user<|end_header_id|>\n\n{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    )
    folder = vocabularies.write_tokenizer(tmp_path, llama_3, template=template, eos_token="<|eot_id|>")
    guard = load_guard("llama-guard-3-8b", str(folder))

    assert asked(guard, llama_3, 0.1, 0.9) == "unsafe\nS"
    assert choices(guard, llama_3) == [str(number) for number in range(1, 15)]
    question = guard.category_question
    assert question
    assert (question.names[0], question.names[9], question.names[13]) == (
        "S1:illegal_activities",
        "S10:hate_abuse",
        "S14",
    )


def test_llama_guard_4_is_asked_behind_the_form_that_it_gave(tmp_path: Path) -> None:
    llama_4 = vocabularies.llama_4()
    template = "<|header_start|>user<|header_end|>\n\n{% for m in messages %}{{ m.content }}\n{% endfor %}<|eot|>"
    template += "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>{% endif %}"
    folder = vocabularies.write_tokenizer(tmp_path, llama_4, template=template, eos_token="<|eot|>")
    guard = load_guard("llama-guard-4-12b", str(folder))

    assert asked(guard, llama_4, 0.1, 0.8, 0.0, 0.1) == "unsafe\nS"
    assert asked(guard, llama_4, 0.1, 0.1, 0.0, 0.8) == "\n\nunsafe\nS"


def test_the_worst_window_is_the_one_that_is_asked_again(tmp_path: Path, qwen: Tokenizer) -> None:
    folder = vocabularies.write_tokenizer(tmp_path, qwen, template=CHATML, eos_token="<|im_end|>")
    guard = load_guard("qwen3guard-gen-0.6b", str(folder))
    items = [ChunkItem(seq=at, question="", response=text) for at, text in enumerate(("一", "二", "三"))]
    prompts = [ids for (ids,) in guard.render(items, Mode.SCORE)]

    prompt = guard.category_prompt(prompts, [row(0.8, 0.1, 0.1), row(0.1, 0.8, 0.1), row(0.2, 0.1, 0.7)], single=True)

    assert prompt is not None
    assert prompt[: len(prompts[1])] == prompts[1]


def test_libra_guard_chooses_a_scenario_as_an_experiment(tmp_path: Path, qwen: Tokenizer) -> None:
    folder = vocabularies.write_tokenizer(tmp_path, qwen, template=CHATML, eos_token="<|im_end|>")
    guard = load_guard("libra-guard-qwen2.5-7b-instruct", str(folder))

    assert asked(guard, qwen, 0.1, 0.9) == '不安全",\n  "类别": "'
    assert choices(guard, qwen)[0] == "违法犯罪"
    assert guard.category_question
    assert guard.category_question.by is CategoriesBy.EXPERIMENT


def test_where_a_tokenizer_cannot_tell_the_categories_apart_none_is_asked_for(tmp_path: Path) -> None:
    # In single characters, all codes from S10 on begin as S1 does.
    folder = write_checkpoint(tmp_path, small_tokenizer())
    guard = load_guard("llama-guard-3-8b", str(folder))

    assert guard.category_question is None
    (prompts,) = guard.render([ITEM], Mode.SCORE)
    assert guard.category_prompt(prompts, [row(0.1, 0.9)]) is None


def test_numbers_that_are_written_digit_by_digit_are_not_told_apart_by_their_first_id(
    tmp_path: Path, qwen: Tokenizer
) -> None:
    folder = vocabularies.write_tokenizer(tmp_path, qwen, template=CHATML, eos_token="<|im_end|>")

    assert load_guard("openguardrails-text-2510", str(folder)).category_question is None


def test_a_category_is_named_before_the_marks_and_only_if_the_guard_would_name_one(
    tmp_path: Path, qwen: Tokenizer
) -> None:
    folder = vocabularies.write_tokenizer(tmp_path, qwen, template=CHATML, eos_token="<|im_end|>")
    question = load_guard("qwen3guard-gen-0.6b", str(folder)).category_question
    assert question
    verdict = Verdict(seq=0, outcome=Outcome.SCORED, label=Label.UNSAFE, p_unsafe=0.7, categories=(CONTROVERSIAL,))
    rest = [0.02] * 7

    named = question.named(verdict, row(0.1, *rest, 0.7))
    assert (named.categories, named.categories_by) == (("Jailbreak", CONTROVERSIAL), CategoriesBy.FORCED_CHOICE)
    assert (named.label, named.p_unsafe) == (verdict.label, verdict.p_unsafe)
    assert question.named(verdict, row(0.1, *rest, 0.1)) == verdict
