"""The console's own arithmetic and words."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.ledger.reviews import Why
from infra.ledger.stats import VerdictBar
from producer.gateway.console import pages
from producer.gateway.console.pages import CATALOGUE, Language, Words, language_of
from producer.gateway.console.panels import chart_of
from producer.gateway.console.visitor import csrf_of, is_csrf_of, new_token
from schemas.access import Role
from schemas.items import Label
from schemas.messages import Lane
from schemas.policy import Action
from schemas.runs import RunState
from schemas.verdicts import Outcome

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_the_chart_stacks_each_kind_on_the_one_before_and_fills_its_height_once() -> None:
    bars = [VerdictBar(NOW), VerdictBar(NOW, safe=3, unsafe=1), VerdictBar(NOW, safe=1, dead=1)]

    chart = chart_of(bars)

    assert chart.highest == 4
    assert chart.totals == VerdictBar(NOW, safe=4, unsafe=1, dead=1)
    assert [column.parts for column in chart.columns] == [
        (),
        (("safe", 0.25, 0.75), ("unsafe", 0.0, 0.25)),
        (("safe", 0.75, 0.25), ("dead", 0.5, 0.25)),
    ]


def test_a_chart_of_nothing_is_empty_and_not_an_error() -> None:
    assert chart_of([VerdictBar(NOW), VerdictBar(NOW)]).highest == 0


def test_a_forms_token_belongs_to_one_cookie_and_does_not_tell_it() -> None:
    one, other = new_token(), new_token()

    assert is_csrf_of(one, csrf_of(one))
    assert not is_csrf_of(other, csrf_of(one))
    assert not is_csrf_of("", csrf_of(""))
    assert one not in csrf_of(one)


@pytest.mark.parametrize(
    ("cookie", "accept", "language"),
    [
        (None, "", "en"),
        (None, "zh-Hans-CN, en;q=0.9", "zh"),
        (None, "de, zh;q=0.2, en;q=0.7", "en"),
        (None, "zh;q=0, de", "en"),
        (None, "zh;q=nonsense", "en"),
        ("zh", "en", "zh"),
        ("tlh", "zh", "zh"),
    ],
)
def test_the_language_is_the_chosen_one_or_the_most_wanted_that_is_spoken(
    cookie: str | None, accept: str, language: str
) -> None:
    assert language_of(cookie, accept) == language


def test_ages_are_said_in_the_largest_unit_that_fits_twice() -> None:
    say = Words(Language.EN)

    ages = [say.age(NOW - timedelta(seconds=s), NOW) for s in (-1, 9, 10, 119, 120, 7_200, 172_800)]

    assert ages == ["just now", "just now", "10 s ago", "119 s ago", "2 min ago", "2 h ago", "2 days ago"]


def test_categories_have_the_taxonomys_names_or_the_guards_own_codes() -> None:
    assert Words(Language.ZH).category("gambling") == "赌博"
    assert Words(Language.EN).category("S11") == "S11"


def test_whatever_a_template_may_say_is_in_the_catalogue() -> None:
    templates = (Path(pages.__file__).parent / "templates").glob("*.html")
    said = {name for path in templates for name in re.findall(r'say\("([\w.]+)"[,)]', path.read_text("utf-8"))}
    families = {
        "label.": Label,
        "review.decided.": Label,
        "outcome.": [outcome for outcome in Outcome if outcome is not Outcome.SCORED],
        "action.": Action,
        "lane.": Lane,
        "run.": RunState,
        "review.why.": Why,
        "review.reason.": Why,
        "role.": [role for role in Role if role is not Role.SERVICE],
    }
    said |= {prefix + value for prefix, values in families.items() for value in values}

    assert len(said) > 100
    assert said - set(CATALOGUE) == set()
