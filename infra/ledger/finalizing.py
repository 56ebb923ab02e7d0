"""The end of a run: one process at a time computes its report, under a lease that it renews, and stores it once.

A claim's token is compared with each write, so that a process that was stopped for longer than its lease can neither
keep the run nor overwrite another's report.
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

import sqlalchemy as sa

from infra.ledger.engine import execute, fetch_value
from infra.ledger.leases import lease_ended
from infra.ledger.runs import WAITS_FOR_NEXT_STAGE
from schemas.runs import RunReport

MAX_REPORT_BYTES: Final = 16 << 20
"""A stored report is smaller. Postgres refuses JSON of 256 MiB; readers would rather not have a tenth of that."""


class Claim(NamedTuple):
    """The right to end a run, until its lease runs out. `attempt` counts the claims on the run, from 1."""

    run_id: str
    token: str
    attempt: int


def claim(engine: sa.Engine, run_id: str, *, lease_s: float) -> Claim | None:
    """Take the lease on computing a run's report; None where somebody holds it or the run is not ready.

    A stage of a cascade is ready once it has escalated what it was not sure of.
    """
    statement = sa.text(
        f"""
        UPDATE runs SET state = 'finalizing', lease_until = now() + make_interval(secs => :lease_s),
                        finalize_token = :token, finalize_attempts = finalize_attempts + 1
        WHERE id = :run_id AND settled = expected
          AND (state = 'sealed' OR (state = 'finalizing' AND {lease_ended()}))
          AND NOT ({WAITS_FOR_NEXT_STAGE})
        RETURNING finalize_attempts
        """  # noqa: S608 - our own
    )
    token = secrets.token_hex(8)
    attempt = fetch_value(engine, statement, {"run_id": run_id, "lease_s": lease_s, "token": token})
    return None if attempt is None else Claim(run_id, token, attempt)


_HELD: Final = "WHERE id = :run_id AND state = 'finalizing' AND finalize_token = :token"


def renew(engine: sa.Engine, held: Claim, *, lease_s: float) -> bool:
    """Renew the lease; False where the run is no longer this claim's."""
    statement = sa.text(f"UPDATE runs SET lease_until = now() + make_interval(secs => :lease_s) {_HELD}")  # noqa: S608
    return execute(engine, statement, {**_key(held), "lease_s": lease_s}) == 1


def release(engine: sa.Engine, held: Claim) -> bool:
    """Give the run back, as if it had not been claimed: the next to claim it need not wait for the lease."""
    statement = sa.text(
        f"""
        UPDATE runs SET lease_until = now() - interval '1 second', finalize_attempts = finalize_attempts - 1 {_HELD}
        """  # noqa: S608
    )
    return execute(engine, statement, _key(held)) == 1


def complete(engine: sa.Engine, held: Claim, report: RunReport) -> bool:
    """Store the report and end the run: complete, or cancelled where that was asked. False: it was no longer ours.

    A report that is too large for a reader is stored without its groups, and says so.
    """
    statement = sa.text(
        f"""
        UPDATE runs SET state = CASE WHEN cancelled THEN 'cancelled' ELSE 'complete' END,
                        report = CAST(:report AS jsonb), completed_at = now(), lease_until = NULL,
                        finalize_token = NULL {_HELD}
        """  # noqa: S608
    )
    body = report.model_dump_json()
    if len(body) > MAX_REPORT_BYTES:
        why = f"with its groups the report would be larger than {MAX_REPORT_BYTES >> 20} MiB"
        body = report.model_copy(update={"groups": (), "without_groups": why}).model_dump_json()
    return execute(engine, statement, {**_key(held), "report": body}) == 1


def _key(held: Claim) -> dict[str, str]:
    return {"run_id": held.run_id, "token": held.token}
