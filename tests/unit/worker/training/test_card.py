"""What a card says where the usual is lacking: no temperature, one class, nothing held out."""

from __future__ import annotations

from pathlib import Path

from infra.metrics import Judged, measure
from schemas.items import Label
from schemas.verdicts import Outcome
from worker.training.card import CardFacts, StageFacts, write_model_card
from worker.training.checkpoints import Evaluation
from worker.training.evaluate import Measured
from worker.training.recipe import Recipe
from worker.training.samples import Count

RECIPE = Recipe.model_validate(
    {
        "name": "mine",
        "base": "owner/model",
        "out": "out",
        "stages": [{"name": "only", "train": ["a.jsonl"], "dev_share": 0.1, "learning_rate": 2e-5}],
    }
)
SAFE_ONLY = [Judged("s", "", "", Label.SAFE, Outcome.SCORED, Label.SAFE, 0.1)] * 3


def test_what_is_not_known_is_said_with_its_reason(tmp_path: Path) -> None:
    counts = [Count("a | b", "MIT", 3, 0)]
    [metrics] = [group for group in measure(SAFE_ONLY) if group.kind == "all"]
    history = [Evaluation(step=at, loss=1 / at, dev_nll=0.5, macro_f1=at / 100, learning_rate=0) for at in range(1, 91)]
    facts = CardFacts(
        recipe=RECIPE,
        base_revision="0123",
        revision="4567",
        stages=[
            StageFacts(RECIPE.stages[0], counts, counts, overlapping=7, too_long=5, dev_too_long=0, history=history)
        ],
        fit="the rows are of one class only",
        calibrated_on="dev rows of only",
        measured=[Measured("dev rows of only", metrics, counts, metrics)],
        only_dev=True,
        device="cpu",
        processes=1,
    )
    write_model_card(tmp_path, facts)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for said in (
        "base_model: owner/model",
        "None: the rows are of one class only",
        "the figures flatter",
        "a \\| b",
        "- (the rows with p_unsafe are of one class only)",
        "only: 7 training rows",
        "| 90 (kept) |",
        "| 1 |",
        "were not learnt from",
        "in-domain: training rows come from a | b",
    ):
        assert said in card
    assert card.count("\n| ") < 60
