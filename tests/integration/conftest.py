"""Fleets for integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.servers.services import Services
from tests.support.fleet import Fleet, fleet_on


@pytest.fixture(scope="module")
def module_fleet(module_services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A collector and a worker of the fake guard that go on through all tests of a module."""
    with fleet_on(module_services, tmp_path_factory.mktemp("fleet")) as started:
        started.start_collector()
        started.start_worker()
        yield started


@pytest.fixture
def fleet(services: Services, tmp_path: Path) -> Iterator[Fleet]:
    """Starts real processes on this test's servers; stopped afterwards."""
    with fleet_on(services, tmp_path) as started:
        yield started
