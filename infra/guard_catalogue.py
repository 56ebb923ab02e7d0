"""The catalogue of guards by name, read from guard_catalogue.yaml. Data, not code: adapters are in worker/guards.

It lies below producer and worker because both ask it: the one whether a name is known, the other how to ask the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import yaml

from schemas.guards import GuardCard

_FILE: Final = Path(__file__).with_suffix(".yaml")


def _load() -> dict[str, GuardCard]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time where libyaml is there
    cards = {}
    for group in yaml.load(_FILE.read_text(encoding="utf-8"), Loader=loader):  # noqa: S506 - a safe loader, both of them
        shared = {field: value for field, value in group.items() if field != "guards"}
        for own in group["guards"]:
            # By way of JSON, from which a strict model takes lists for tuples and words for enumerations.
            card = GuardCard.model_validate_json(json.dumps({**shared, **own}))
            cards[card.name] = card
    return cards


GUARDS: Final[dict[str, GuardCard]] = _load()
