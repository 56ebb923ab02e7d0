"""Policies as files: every error names the file, the line and the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DataError, UsageError
from producer.policies import EXAMPLES, parse_policy, read_policy
from schemas.policy import Action

HEAD = "policy: forum\nversion: 2\nthresholds: {review: .5, block: 0.9}\n"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_policy_is_one_by_its_own_name(example: Path) -> None:
    found = read_policy(example.stem)

    assert found.policy == example.stem
    assert found.foreign_categories() == []


def test_a_whole_policy_is_read() -> None:
    found = parse_policy(f"{HEAD}dead: block\ncategories:\n  赌博: {{review: 0.1}}\n".encode(), "f")

    assert (found.policy, found.version, found.thresholds.review, found.dead) == ("forum", 2, 0.5, Action.BLOCK)
    assert found.categories["gambling"].review == 0.1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f:1: expected `policy:`"),
        ("- a\n", "f:1: expected `policy:`"),
        ("policy: [\n", "f:2:"),
        ("version: 1\nthresholds: {}\n", "f:1: policy: Field required"),
        (f"{HEAD}categories:\n  a: {{}}\n  hate_abuse:\n    block: 2\n", "f:7: categories.hate_abuse.block: "),
        (f"{HEAD}\nsurfaces:\n  post:\n    treshold: 1\n", "f:7: surfaces.post.treshold: there is no such field"),
        (f"{HEAD}dead: nope\n", "f:4: dead: Input should be 'pass', 'review' or 'block'"),
        ("policy: p\nversion: 1\nthresholds:\n  review: 1\n  block: 0\n", "f:3: thresholds: review (1) begins above"),
        ("policy: p\n\npolicy: q\n", "f:3: policy stands here twice"),
        ("policy: 2026-11-24\nversion: 1:30\n", "f:2: '1:30' is no number"),
        ("? [a]\n: b\n", "f:1: a field's name is expected"),
        ("policy: &a p\nname: *a\n", "f: aliases"),
        ("[" * 700 + "]" * 700, "f: nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_by_file_line_and_field(text: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_policy(text.encode(), "f")

    assert str(raised.value).startswith(said)


def test_a_file_that_is_not_there_says_what_is_shipped() -> None:
    with pytest.raises(UsageError, match="community, default, model-answers"):
        read_policy("nowhere.yaml")


@pytest.mark.slow
@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: yaml.dump(x).encode()))
def test_whatever_the_file_holds_it_is_a_policy_or_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        parse_policy(content, "f")
