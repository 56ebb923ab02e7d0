"""A verdict as OpenAI's moderation result: 13 booleans and 13 numbers, whatever the guard said.

Fail-safe (docs/no-verdict.md): what was not judged is never a pass, and a flagged item always has a true category,
because many clients of this endpoint read categories and not `flagged`. Knows nothing of requests.
"""

from __future__ import annotations

from typing import Any, Final

from producer.gateway.api.openai_categories import CATEGORIES, openai_categories
from schemas.items import Label
from schemas.verdicts import CategoriesBy, Outcome, Verdict

EVERY_CATEGORY: Final = "all"
_FAIL_SAFE: Final = "fail_safe"
_LEAST_FLAGGED_SCORE: Final = 0.5
"""A flagged item scores no less, although a guard may flag below: clients compare with 0.5 and above."""


def moderation_result(verdict: Verdict, item_name: str, *, unnamed_category: str) -> dict[str, Any]:
    """One of OpenAI's results; our own fields stand under "libra".

    A safe item's scores are all `p_unsafe`: no category is likelier than their union. A flagged item's score is
    `p_unsafe` (0.5 at least) in its true categories and 0 in the others. Where the guard gives no probability, scores
    are 0 and 1; so they are for an item that was not judged. `libra.categories_named` says where the true categories
    are from: the "guard", a "forced_choice", an "experiment" (see `CategoriesBy`), or the "fail_safe"
    `unnamed_category` ("all", or one of OpenAI's names); null where none is true.
    """
    flagged = verdict.label is not Label.SAFE
    named = openai_categories(verdict.categories) if verdict.label is Label.UNSAFE else frozenset()
    named_by: str | None = None
    if flagged:
        named_by = (verdict.categories_by or CategoriesBy.GUARD).value if named else _FAIL_SAFE
        fallback = CATEGORIES if unnamed_category == EVERY_CATEGORY else (unnamed_category,)
        named = named or frozenset(fallback)
    score = verdict.p_unsafe if verdict.p_unsafe is not None else float(flagged)
    scores = {name: max(score, _LEAST_FLAGGED_SCORE) if name in named else 0.0 for name in CATEGORIES}
    return {
        "flagged": flagged,
        "categories": {name: name in named for name in CATEGORIES},
        "category_scores": scores if flagged else dict.fromkeys(CATEGORIES, score),
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
        "libra": {
            "item": item_name,
            "outcome": verdict.outcome.value,
            "label": verdict.label.value if verdict.label else None,
            "p_unsafe": verdict.p_unsafe,
            "categories": list(verdict.categories),
            "categories_named": named_by,
            "reason": verdict.reason if verdict.outcome is not Outcome.SCORED else None,
        },
    }
