"""Fleets for integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.servers.services import Services
from tests.support.fleet import Fleet, fleet_on


@pytest.fixture
def fleet(services: Services, tmp_path: Path) -> Iterator[Fleet]:
    """Starts real processes on this test's servers; stopped afterwards."""
    with fleet_on(services, tmp_path) as started:
        yield started
