"""A purge by a role that may not drop a month's tables still deletes their rows."""

from __future__ import annotations

from unittest.mock import MagicMock

import psycopg
import pytest
import sqlalchemy as sa

from infra.ledger import months, retention
from infra.ledger.months import Month


def dropping(monkeypatch: pytest.MonkeyPatch, problem: psycopg.Error) -> bool:
    refusal = sa.exc.ProgrammingError("DROP TABLE …", {}, problem)
    monkeypatch.setattr(months, "drop", MagicMock(side_effect=refusal))
    engine = MagicMock()
    engine.begin.return_value.__exit__.return_value = False
    return retention._drop(engine, Month(2020, 11), ["rm20110000000001"])


def test_a_month_whose_tables_are_another_roles_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dropping(monkeypatch, psycopg.errors.InsufficientPrivilege("must be owner of table items_rm2011")) is False


def test_a_fault_of_our_own_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sa.exc.ProgrammingError):
        dropping(monkeypatch, psycopg.errors.UndefinedColumn("no such column"))
