"""What `make test-fast` leaves out: it does not even import a file that is slow as a whole."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

# Torch and the models' code take nine seconds of each test process to load.
_SLOW_FILE = re.compile(
    r'^(import torch|from torch\b|torch = |pytest\.importorskip\("torch"\)|pytestmark = pytest\.mark\.slow)',
    re.MULTILINE,
)


@functools.cache
def _is_slow(path: Path) -> bool:
    return path.suffix == ".py" and bool(_SLOW_FILE.search(path.read_text(encoding="utf-8")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("markexpr") == "not slow" and _is_slow(collection_path) else None


def pytest_itemcollected(item: pytest.Item) -> None:
    if _is_slow(item.path):
        item.add_marker(pytest.mark.slow)
