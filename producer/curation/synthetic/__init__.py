"""Text without a model: questions, answers and posts from phrases written for this project.

For both sides: curation takes queries and answers from it where there is no generator, training takes rows.
Phrases name a harm at the level a classifier needs. What an unsafe answer "instructs" is empty talk.
"""

from producer.curation.synthetic.phrases import Part
from producer.curation.synthetic.rows import LICENCE, SOURCE, synthetic_rows

__all__ = ["LICENCE", "SOURCE", "Part", "synthetic_rows"]
