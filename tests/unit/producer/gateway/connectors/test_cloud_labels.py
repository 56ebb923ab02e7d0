"""What our categories are called on the clouds' wires."""

from __future__ import annotations

import pytest

from producer.gateway.connectors.cloud_labels import ALIYUN, ALIYUN_RISK_LEVEL, TENCENT, TENCENT_SUGGESTION, CloudLabels
from schemas.policy import Action
from schemas.taxonomy import SCENARIOS, SUBCATEGORIES


@pytest.mark.parametrize("cloud", [ALIYUN, TENCENT])
def test_every_category_has_a_label_that_does_not_mean_safe(cloud: CloudLabels) -> None:
    codes = [*(scenario.code for scenario in SCENARIOS), *(sub.code for sub in SUBCATEGORIES)]

    assert set(cloud.by_category) <= set(codes)
    for code in codes:
        labels = cloud.of([code])
        assert labels
        assert cloud.safe not in labels, code


@pytest.mark.parametrize("cloud", [ALIYUN, TENCENT])
@pytest.mark.parametrize("codes", [[], ["controversial"], ["own"], ["own:unknown"]])
def test_where_no_category_is_known_the_label_says_unsafe(cloud: CloudLabels, codes: list[str]) -> None:
    assert cloud.of(codes) == [cloud.unnamed]


def test_a_sub_category_comes_before_its_scenario_and_a_guards_own_code_may_stand_before_it() -> None:
    assert TENCENT.of(["pornography"]) == ["Porn"]
    assert TENCENT.of(["S12:pornography", "gambling", "S1:illegal_activities"]) == ["Porn", "Illegal"]


def test_every_action_has_its_level_and_its_suggestion() -> None:
    assert set(ALIYUN_RISK_LEVEL) == set(TENCENT_SUGGESTION) == set(Action)
