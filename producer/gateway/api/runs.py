"""`GET /v1/runs/{id}`: where a run stands, and its report once it has ended."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from infra.ledger import reading
from libra_fleet.cli.show import run_facts
from producer.gateway.access import Reader
from producer.gateway.problems import NoSuchThingError
from producer.gateway.state import Gateway, gateway_of
from schemas.access import Scope

router = APIRouter(prefix="/v1", tags=["runs"])


@router.get("/runs/{run_id}")
async def get_run(
    run_id: Annotated[str, Path(pattern=r"^r[0-9a-f]{10}$")],
    principal: Reader,
    gateway: Annotated[Gateway, Depends(gateway_of)],
) -> dict[str, Any]:
    """A run of the tenant's own (an admin: any), with the benchmark's metrics once it has ended."""
    engine = gateway.services.engine
    status = await gateway.pool.run(reading.find_run, engine, run_id)
    if status is None or not (status.spec.tenant == principal.tenant or principal.may(Scope.ADMIN)):
        raise NoSuchThingError("run", run_id)
    report = await gateway.pool.run(reading.stored_report, engine, run_id)
    return {**run_facts(status), "report": report.model_dump(mode="json") if report else None}
