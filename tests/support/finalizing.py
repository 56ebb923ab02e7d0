"""Runs that tests bring to their end without a fleet."""

from __future__ import annotations

from infra.ledger import finalizing
from infra.servers.services import Services
from schemas.items import Retention
from worker.collector.finalizer import Finalizer
from worker.collector.report import build_report


def finalizer(services: Services, *, retention: Retention = Retention.FULL, lease_s: float = 60) -> Finalizer:
    """What a finalizer's process runs."""
    return Finalizer(
        services.engine, services.coordination, lease_s=lease_s, retention=retention, stopping=lambda: False
    )


def claimable(services: Services, run_id: str) -> bool:
    """Whether a run's report may be computed; it is claimed then."""
    return finalizing.claim(services.engine, run_id, lease_s=60) is not None


def end(services: Services, run_id: str) -> None:
    """Store a settled run's report."""
    claim = finalizing.claim(services.engine, run_id, lease_s=60)
    assert claim is not None
    assert finalizing.complete(services.engine, claim, build_report(services.engine, run_id))
