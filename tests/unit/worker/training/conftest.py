"""A tiny untrained chat model, made once for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))
