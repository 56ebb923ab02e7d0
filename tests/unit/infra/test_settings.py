"""Settings: one table, one prefix, clear refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.errors import UsageError
from infra.settings import Settings, load_settings

TABLE = Path(__file__).parents[3] / "docs" / "configuration.md"


def documented() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `(LIBRA_\w+|CUDA_VISIBLE_DEVICES)` \| (.*?) \| (.*?) \|$", TABLE.read_text(), re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def test_every_setting_stands_in_the_table_with_its_default_and_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    expected = {}
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"LIBRA_{name.upper()}")
        default = field.get_default(call_default_factory=True)
        shown = "the user's state folder" if name == "state_dir" else "–" if default is None else f"{default}"
        expected[variable] = (shown, field.description or "")

    assert documented() == expected


def test_a_bad_value_is_refused_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBRA_CHUNK_ITEMS", "many")

    with pytest.raises(UsageError, match="LIBRA_CHUNK_ITEMS"):
        load_settings()


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    settings = Settings(database_url="postgresql://user:hunter2@host/name")

    assert "hunter2" not in f"{settings!r} {settings}"
