"""The examples in the documentation are what they say they are."""

from __future__ import annotations

import re
import shlex
from inspect import signature
from pathlib import Path

import pytest

import libra_fleet
from infra.settings import Settings
from libra_fleet import AsyncClient, Client, ItemVerdict
from producer.policies import parse_policy
from schemas.items import Label
from schemas.policy import decide, surface_of
from schemas.verdicts import Outcome, Verdict
from schemas.webhooks import Envelope, JudgedItem
from tests.support.cli import require_command

DOCS = Path(__file__).parents[2] / "docs"


def block(page: str, language: str) -> str:
    found = re.search(
        rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1]


def test_the_policy_is_one_and_decides_the_letter_as_shown() -> None:
    policy = parse_policy(block("policies.md", "yaml").encode(), "policies.md")
    letter = Envelope.model_validate_json(block("webhooks.md", "json"))
    assert isinstance(letter.data, JudgedItem)
    verdict = Verdict(
        seq=letter.data.seq,
        outcome=Outcome.SCORED,
        label=Label.UNSAFE,
        p_unsafe=letter.data.p_unsafe,
        categories=letter.data.categories,
    )

    decision = decide(policy, verdict, surface=surface_of(letter.data.metadata, ""))

    assert (letter.data.policy, letter.data.policy_version) == (policy.policy, policy.version)
    assert (letter.data.action, letter.data.reason) == (decision.action, decision.reason)
    assert policy.foreign_categories() == ["S4"]


def test_the_receivers_code_compiles_and_the_schedule_is_the_default() -> None:
    compile(block("webhooks.md", "python"), "webhooks.md", "exec")
    named = "after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h"
    seconds = {"s": 1, "min": 60, "h": 3600}
    pauses = [int(number) * seconds[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", named)]

    assert named in (DOCS / "webhooks.md").read_text(encoding="utf-8")
    assert pauses == list(Settings.model_fields["webhook_retry_s"].default)


def test_the_clients_page_names_every_method_argument_and_error() -> None:
    page = (DOCS / "client.md").read_text(encoding="utf-8")
    compile(block("client.md", "python"), "client.md", "exec")
    named = set(re.findall(r"`(\w+)[`(=]", page))
    methods = {name for name in vars(AsyncClient) if not name.startswith("_")}
    arguments = set(signature(AsyncClient.__init__).parameters) - {"self"}

    assert methods == {name for name in vars(Client) if not name.startswith("_")}
    assert {*methods, *arguments, *ItemVerdict.model_fields, *libra_fleet.__all__} - named - {"ItemVerdict"} == set()


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/kubernetes.md", "docs/deploy.md", "README.md"])
def test_commands_that_a_page_shows_exist_with_their_options(page: str) -> None:
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown = re.findall(r"(?:^\$ |\$\(|-- |-T |rm )(?:\.venv/bin/)?libra ([^\n&)<]+)", "\n".join(blocks), re.MULTILINE)
    assert shown
    for words in shown:
        require_command(shlex.split(words, comments=True))
