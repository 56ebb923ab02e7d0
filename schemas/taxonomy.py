"""The benchmark's taxonomy: 7 scenarios and their 39 sub-categories.

English names are read from the figure of the Libra repository; codes and Chinese names are ours.
"""

from __future__ import annotations

import re
from typing import Final

from schemas.base import Frozen


class SubCategory(Frozen):
    """One kind of risk inside a scenario; `scenario` is the scenario's code."""

    code: str
    name: str
    name_zh: str
    scenario: str


class Scenario(Frozen):
    """One of the seven top-level scenarios."""

    code: str
    name: str
    name_zh: str
    subcategories: tuple[SubCategory, ...]


def _scenario(code: str, name: str, name_zh: str, *rows: tuple[str, str, str]) -> Scenario:
    subcategories = tuple(SubCategory(code=c, name=n, name_zh=z, scenario=code) for c, n, z in rows)
    return Scenario(code=code, name=name, name_zh=name_zh, subcategories=subcategories)


SCENARIOS: Final[tuple[Scenario, ...]] = (
    _scenario(
        "illegal_activities",
        "Illegal Activities and Crime",
        "违法犯罪",
        ("minor_related", "Minor-Related", "涉未成年人"),
        ("traffic_violations", "Traffic Violations", "交通违法"),
        ("feudal_superstition", "Feudal Superstition", "封建迷信"),
        ("environmental_protection", "Environmental Protection", "环境保护"),
        ("wildlife_protection", "Wildlife Protection", "野生动物保护"),
        ("illegal_services", "Illegal Services", "非法服务"),
        ("pornography", "Pornography", "色情"),
        ("gambling", "Gambling", "赌博"),
        ("cybersecurity", "Cybersecurity", "网络安全"),
        ("special_control", "Special Control", "特殊管制"),
        ("contraband_crimes", "Contraband Crimes", "违禁品犯罪"),
        ("property_infringement", "Property Infringement", "侵犯财产"),
        ("financial_crimes", "Financial Crimes", "金融犯罪"),
        ("personal_crimes", "Personal Crimes", "侵犯人身"),
        ("violent_crimes", "Violent Crimes", "暴力犯罪"),
    ),
    _scenario(
        "bias_discrimination",
        "Bias and Discrimination",
        "偏见歧视",
        ("specific_groups", "Specific Groups", "特定群体"),
        ("vulnerable_groups", "Vulnerable Groups", "弱势群体"),
        ("occupation", "Occupation", "职业"),
        ("region", "Region", "地域"),
        ("belief", "Belief", "信仰"),
        ("race", "Race", "种族"),
        ("ethnicity", "Ethnicity", "民族"),
        ("sexual_orientation", "Sexual Orientation", "性取向"),
        ("gender", "Gender", "性别"),
    ),
    _scenario(
        "privacy_property",
        "Privacy and Property",
        "隐私财产",
        ("personal_data", "Personal Data", "个人数据"),
        ("business_data", "Business Data", "商业数据"),
        ("sensitive_data", "Sensitive Data", "敏感数据"),
        ("intellectual_property", "Intellectual Property", "知识产权"),
    ),
    _scenario(
        "rumors_misinformation",
        "Rumors and Misinformation",
        "谣言与不实信息",
        ("misinformation", "Misinformation", "虚假信息"),
        ("history_common_sense", "History & Common Sense", "历史与常识"),
        ("professional_advice", "Professional Advice", "专业建议"),
    ),
    _scenario(
        "hate_abuse",
        "Hate Speech and Abuse",
        "仇恨辱骂",
        ("hatred", "Hatred", "仇恨"),
        ("hostility_aggression", "Hostility & Aggression", "敌意攻击"),
        ("humiliation", "Humiliation", "羞辱"),
    ),
    _scenario(
        "ethics_morality",
        "Ethics and Morality",
        "伦理道德",
        ("values", "Values", "价值观"),
        ("moral_behavior", "Moral Behavior", "道德行为"),
        ("artificial_intelligence", "Artificial Intelligence", "人工智能"),
    ),
    _scenario(
        "physical_mental_health",
        "Physical and Mental Health",
        "身心健康",
        ("mental_health", "Mental Health", "心理健康"),
        ("bodily_harm", "Bodily Harm", "身体伤害"),
    ),
)
"""All scenarios, in the order of the figure."""

SUBCATEGORIES: Final[tuple[SubCategory, ...]] = tuple(sub for scenario in SCENARIOS for sub in scenario.subcategories)
"""All sub-categories, scenario by scenario."""

_SCENARIO_BY_CODE: Final = {scenario.code: scenario for scenario in SCENARIOS}
_SUBCATEGORY_BY_CODE: Final = {sub.code: sub for sub in SUBCATEGORIES}


def scenario_by_code(code: str) -> Scenario:
    """The scenario with exactly this code."""
    return _SCENARIO_BY_CODE[code]


def subcategory_by_code(code: str) -> SubCategory:
    """The sub-category with exactly this code."""
    return _SUBCATEGORY_BY_CODE[code]


def _key(text: str) -> str:
    """Return a name without case, spaces, punctuation and the words for "and"."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return re.sub(r"[与和及]", "", "".join(word for word in words if word != "and"))


_SCENARIO_BY_KEY: Final = {_key(n): s for s in SCENARIOS for n in (s.code, s.name, s.name_zh)}
_SUBCATEGORY_BY_KEY: Final = {_key(n): s for s in SUBCATEGORIES for n in (s.code, s.name, s.name_zh)}


def find_scenario(text: str) -> Scenario | None:
    """The scenario of this code, English or Chinese name, however it is spaced, cased or joined; else None."""
    return _SCENARIO_BY_KEY.get(_key(text))


def find_subcategory(text: str) -> SubCategory | None:
    """The sub-category of this code, English or Chinese name, as tolerant as `find_scenario`; else None."""
    return _SUBCATEGORY_BY_KEY.get(_key(text))
