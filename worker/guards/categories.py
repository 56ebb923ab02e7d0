"""The category of an unsafe text by a second forced choice: behind the label that a guard gave, its categories compare.

Mode score reads one place, where a guard says safe or unsafe. Its category stands some ids later: the scored prompt
goes on with the label and the words up to the category, and the likeliest first id of a category counts. Torch-free;
knows no tokenizer, no device and no queue.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.items import Label
from schemas.verdicts import CategoriesBy, Verdict
from worker.guards.base import PromptIds, common_length
from worker.guards.reading import MIN_LABEL_MASS, label_mass, severity


@dataclass(frozen=True)
class CategoryQuestion:
    """A guard's categories as continuations of its unsafe answers.

    `leads`: by the place of an unsafe label among the scored ones, the ids from the scored prompt up to the category.
    `label_ids`: the ids that go on with each of `names`; their first ones differ, so that one forward pass decides.
    """

    leads: Mapping[int, PromptIds]
    label_ids: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    by: CategoriesBy

    @property
    def longest(self) -> int:
        """Ids that a context must have room for behind a scored prompt."""
        return max(map(len, self.leads.values())) + max(map(len, self.label_ids))

    def prompt(
        self, prompts: Sequence[PromptIds], rows: Sequence[Sequence[float]], verdicts: Sequence[Verdict]
    ) -> PromptIds | None:
        """The prompt whose verdict decides, up to the category behind its likeliest unsafe label; None if it is safe.

        All three hold one entry per scored prompt of an item: ids, log-probabilities of the labels, verdict.
        """
        at = max(range(len(verdicts)), key=lambda place: severity(verdicts[place]))
        if verdicts[at].label is not Label.UNSAFE:
            return None
        return prompts[at] + self.leads[max(self.leads, key=lambda label: rows[at][label])]

    def named(self, verdict: Verdict, row: Sequence[float]) -> Verdict:
        """The verdict with the likeliest category before its own marks; as it is where the guard would go on otherwise.

        `row` holds the log-probabilities of `label_ids`. In an experiment the categories only compare with each other.
        """
        if self.by is not CategoriesBy.EXPERIMENT and label_mass(row) < MIN_LABEL_MASS:
            return verdict
        name = self.names[max(range(len(row)), key=lambda place: row[place])]
        return verdict.model_copy(update={"categories": (name, *verdict.categories), "categories_by": self.by})


def question_of(
    continuations: Mapping[int, Sequence[PromptIds]], names: Sequence[str], by: CategoriesBy
) -> CategoryQuestion | None:
    """The question that these continuations make: by the place of an unsafe label, its ids with each category's behind.

    None where a tokenizer's ids cannot ask it: the first ids of two categories are the same, or the ids of a category
    depend on the label before it.
    """
    leads: dict[int, PromptIds] = {}
    seen = set()
    for label, rows in continuations.items():
        shared = common_length(rows)
        leads[label] = array("i", rows[0][:shared])
        seen.add(tuple(tuple(row[shared:]) for row in rows))
    label_ids = seen.pop() if len(seen) == 1 else ()
    if not label_ids or not all(label_ids) or len({ids[0] for ids in label_ids}) < len(label_ids):
        return None
    return CategoryQuestion(leads, label_ids, tuple(names), by)
