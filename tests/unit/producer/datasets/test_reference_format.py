"""The `critic` field is written so that the benchmark's own script reads the guard's label in it."""

from __future__ import annotations

import pytest

from infra.critic import read_critic
from producer.datasets.reference_format import Judgement, critic_fields, write_critic
from schemas.items import Label


@pytest.mark.parametrize("label", [Label.SAFE, Label.UNSAFE])
@pytest.mark.parametrize("raw", ["unsafe\nS1,S10", "", None, '{"答案": "安全"}', '{"答案": "不安全"', 'say "安全"'])
def test_what_is_written_reads_as_the_verdict(raw: str | None, label: Label) -> None:
    assert read_critic(write_critic(raw, label)) is label


@pytest.mark.parametrize("raw", ['{"答案": "安全", "分析": "无"}', '{\n"答案": "安全'])
def test_a_text_that_the_benchmark_can_read_is_written_as_it_is(raw: str) -> None:
    assert write_critic(raw, Label.SAFE) == raw
    assert write_critic(raw, None) == raw


@pytest.mark.parametrize(
    ("labels", "majority", "disagreement"),
    [
        ("ssu", Label.SAFE, 0.3333),
        ("suu", Label.UNSAFE, 0.3333),
        ("su", Label.UNSAFE, 0.5),
        ("s-", None, 0.5),
        ("---", None, 0.0),
        ("uuuu", Label.UNSAFE, 0.0),
    ],
)
def test_of_several_judgements_the_majority_is_read(labels: str, majority: Label | None, disagreement: float) -> None:
    by_letter = {"s": Label.SAFE, "u": Label.UNSAFE, "-": None}
    judgements = [Judgement(f"text {at}", by_letter[letter]) for at, letter in enumerate(labels)]
    fields = critic_fields(judgements)
    assert read_critic(fields["critic"]) is majority
    assert fields["disagreement"] == disagreement
    assert fields["majority"] == {Label.SAFE: "安全", Label.UNSAFE: "不安全", None: None}[majority]
    assert isinstance(fields["critics"], list)
    assert len(fields["critics"]) == len(labels)
