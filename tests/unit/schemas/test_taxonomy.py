import re

import pytest
from pydantic import ValidationError

from schemas.taxonomy import (
    SCENARIOS,
    SUBCATEGORIES,
    find_scenario,
    find_subcategory,
    scenario_by_code,
    subcategory_by_code,
)


def test_there_are_seven_scenarios_and_thirty_nine_subcategories() -> None:
    assert [len(scenario.subcategories) for scenario in SCENARIOS] == [15, 9, 4, 3, 3, 3, 2]
    assert len(SUBCATEGORIES) == 39


@pytest.mark.parametrize("field", ["code", "name", "name_zh"])
def test_no_two_entries_share_a_code_or_a_name(field: str) -> None:
    for entries in (SCENARIOS, SUBCATEGORIES):
        assert len({getattr(entry, field) for entry in entries}) == len(entries)


def test_codes_are_snake_case_and_chinese_names_are_chinese() -> None:
    for entry in (*SCENARIOS, *SUBCATEGORIES):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", entry.code)
        assert re.fullmatch(r"[\u4e00-\u9fff]+", entry.name_zh)


def test_a_subcategory_names_the_scenario_that_holds_it() -> None:
    for sub in SUBCATEGORIES:
        assert sub in scenario_by_code(sub.scenario).subcategories


def test_every_entry_is_found_by_its_code_and_by_both_names() -> None:
    for scenario in SCENARIOS:
        assert scenario_by_code(scenario.code) is scenario
        for text in (scenario.code, scenario.name, scenario.name_zh):
            assert find_scenario(text) is scenario
    for sub in SUBCATEGORIES:
        assert subcategory_by_code(sub.code) is sub
        for text in (sub.code, sub.name, sub.name_zh):
            assert find_subcategory(text) is sub


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("  minor related ", "minor_related"),
        ("History and Common Sense", "history_common_sense"),
        ("hostility&aggression", "hostility_aggression"),
        ("SEXUAL-ORIENTATION", "sexual_orientation"),
        ("历史和常识", "history_common_sense"),
        ("「历史常识」", "history_common_sense"),
    ],
)
def test_finding_a_name_forgives_case_spacing_punctuation_and_the_joining_word(text: str, code: str) -> None:
    found = find_subcategory(text)
    assert found is not None
    assert found.code == code


@pytest.mark.parametrize("text", ["", "  ", "&", "and", "与", "weather", "违法"])
def test_an_unknown_or_empty_name_is_found_nowhere(text: str) -> None:
    assert find_scenario(text) is None
    assert find_subcategory(text) is None


def test_an_exact_lookup_of_an_unknown_code_is_an_error() -> None:
    with pytest.raises(KeyError):
        scenario_by_code("weather")
    with pytest.raises(KeyError):
        subcategory_by_code("Gambling")


def test_the_taxonomy_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        SCENARIOS[0].name = "other"
