"""Pure functions from verdicts and truth to numbers. Knows no broker, no database, no model."""

from infra.metrics.groups import AVERAGED, measure
from infra.metrics.tally import Judged

__all__ = ["AVERAGED", "Judged", "measure"]
