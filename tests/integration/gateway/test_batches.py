"""Files and batches, with a ledger that the test settles by hand."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from infra.ledger import batches, intake, retention
from infra.ledger.audit import audit
from infra.ledger.intake import Submission
from infra.ledger.runs import run_status
from infra.process import wait_until
from infra.servers.services import Services
from producer.gateway.app import build_app
from producer.intake.submit import submit
from schemas.guards import Mode
from schemas.items import Item, Retention
from schemas.messages import Lane
from schemas.runs import RunSpec, RunState
from schemas.verdicts import Outcome
from tests.support.finalizing import finalizer
from tests.support.settling import settle_pending

ORDER = {"endpoint": "/v1/moderations", "completion_window": "24h"}


def line(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/moderations", "body": body})


def upload(api: TestClient, headers: dict[str, str], *lines: str) -> str:
    answer = api.post(
        "/v1/files", headers=headers, data={"purpose": "batch"}, files={"file": ("in.jsonl", "\n".join(lines).encode())}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def order(api: TestClient, headers: dict[str, str], *lines: str, **more: Any) -> dict[str, Any]:
    body = {"input_file_id": upload(api, headers, *lines), **ORDER, **more}
    answer = api.post("/v1/batches", headers=headers, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait_for(api: TestClient, headers: dict[str, str], batch_id: str, status: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def arrived() -> bool:
        found.update(api.get(f"/v1/batches/{batch_id}", headers=headers).json())
        return bool(found["status"] == status)

    assert wait_until(arrived, timeout_s=20), found
    return found


def finish(services: Services, run_id: str, **verdict: object) -> None:
    settle_pending(services, **verdict)
    finalizer(services).finalize(run_id)


def rows(api: TestClient, headers: dict[str, str], file_id: str) -> list[dict[str, Any]]:
    answer = api.get(f"/v1/files/{file_id}/content", headers=headers)
    assert answer.status_code == 200
    return [json.loads(text) for text in answer.text.splitlines()]


def submitted(services: Services) -> bool:
    with services.engine.connect() as connection:
        return not connection.scalar(sa.text("SELECT count(*) FROM batches WHERE submitted_at IS NULL"))


def test_a_batch_of_items_ends_in_a_line_for_each_of_them(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    lines = [
        json.dumps(
            {"custom_id": f"c{at}", "method": "POST", "url": "/v1/items", "body": {"question": "q", "response": "r"}}
        )
        for at in range(3)
    ]
    batch = order(api, service, *lines, endpoint="/v1/items", metadata={"a": "b"})
    assert wait_until(lambda: submitted(services), timeout_s=20)
    running = wait_for(api, service, batch["id"], "in_progress")
    assert running["output_file_id"] is None
    finish(services, running["run_id"])

    done = wait_for(api, service, batch["id"], "completed")
    assert done["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert (done["metadata"], done["error_file_id"]) == ({"a": "b"}, None)
    found = rows(api, service, done["output_file_id"])
    assert sorted(row["custom_id"] for row in found) == ["c0", "c1", "c2"]
    assert {row["response"]["body"]["verdict"]["label"] for row in found} == {"safe"}
    run = api.get(f"/v1/runs/{done['run_id']}", headers=service).json()
    assert (run["state"], run["report"]["counts"]["scored"]) == ("complete", 3)
    assert len(api.get("/v1/verdicts", headers=service).json()["data"]) == 3


def test_dead_items_of_a_batch_are_in_its_error_file(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    batch = order(api, service, line("c0", input="a"))
    assert wait_until(lambda: submitted(services), timeout_s=20)
    run_id = wait_for(api, service, batch["id"], "in_progress")["run_id"]
    finish(services, run_id, outcome=Outcome.DEAD, label=None, p_unsafe=None, reason="too hard")

    done = wait_for(api, service, batch["id"], "completed")
    assert rows(api, service, done["output_file_id"]) == []
    (row,) = rows(api, service, done["error_file_id"])
    assert (row["custom_id"], row["response"], row["error"]["message"]) == ("c0", None, "too hard")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([""], [(1, "empty_file", None)]),
        ([line("a", input="x"), line("a", input="y")], [(2, "duplicate_custom_id", "custom_id")]),
        ([line("a", input=["x", " "])], [(1, "invalid_request", "body.input.1")]),
        ([line("a", input="x", model="none")], [(1, "invalid_request", "body.model")]),
        ([line("a", input="x"), line("b", input="x", model="libra-tiny")], [(2, "mismatched_model", "body.model")]),
        ([line("a", inputs="x")], [(1, "invalid_request", "body.input")]),
        ([line("a", input=" ")], [(1, "invalid_request", "body.input")]),
        ([line("a", input="x").replace("moderations", "items")], [(1, "mismatched_url", "url")]),
        (["[]", "{"], [(1, "invalid_request", None), (2, "invalid_json_line", None)]),
    ],
)
def test_a_bad_line_fails_the_batch_and_is_named(
    api: TestClient, services: Services, service: dict[str, str], lines: list[str], expected: list[Any]
) -> None:
    batch = order(api, service, *(lines if any(lines) else ["\n"]))
    failed = wait_for(api, service, batch["id"], "failed")

    assert [(error["line"], error["code"], error["param"]) for error in failed["errors"]["data"]] == expected
    assert failed["run_id"] is None


def test_a_batch_whose_gateway_died_is_gone_on_with(services: Services, service: dict[str, str]) -> None:
    batch_id, run_id, _ = half_submitted(services)

    with TestClient(build_app(services, default_guard="fake")) as api:
        assert wait_until(lambda: submitted(services), timeout_s=20)
        finish(services, run_id)
        done = wait_for(api, service, batch_id, "completed")
        found = rows(api, service, done["output_file_id"])

    assert sorted(row["custom_id"] for row in found) == [f"c{at}" for at in range(6)]
    assert audit(services.engine, run_id).sound


def test_a_cancelled_batch_settles_what_is_pending_as_dead(
    api: TestClient, services: Services, service: dict[str, str]
) -> None:
    batch = order(api, service, line("c0", input="a"))
    assert wait_until(lambda: submitted(services), timeout_s=20)
    cancelling = api.post(f"/v1/batches/{batch['id']}/cancel", headers=service).json()
    finish(services, cancelling["run_id"])

    done = wait_for(api, service, batch["id"], "cancelled")
    assert cancelling["status"] == "cancelling"
    assert done["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
    assert api.post(f"/v1/batches/{batch['id']}/cancel", headers=service).status_code == 409


def half_submitted(services: Services) -> tuple[str, str, str]:
    """A batch whose gateway died after three of six lines; its id, its run's and its file's."""
    content = "\n".join(line(f"c{at}", input=f"text {at}") for at in range(6)).encode()
    file = batches.store_file(services.engine, tenant="acme", filename="f", purpose="batch", content=content)
    batch_id = batches.create_batch(
        services.engine, tenant="acme", input_file_id=file.id, endpoint="/v1/moderations", metadata=None
    )
    assert batches.claim_batch(services.engine, lease_s=0.1) == batch_id
    run_id = batches.begin_run(services.engine, batch_id, intake.new_run_id())
    spec = RunSpec(guard="fake", mode=Mode.SCORE, lane=Lane.BULK, source=f"batch:{batch_id}", tenant="acme")
    intake.create_run(services.engine, spec, run_id=run_id, name=batch_id)
    half = [Item(id=str(at + 1), response=f"text {at}") for at in range(3)]
    submit(services, run_id, spec, half, submission_of=lambda item: Submission("acme", f"c{int(item.id) - 1}"))
    return batch_id, run_id, file.id


def test_a_file_that_goes_amid_its_batch_cancels_the_run(services: Services, service: dict[str, str]) -> None:
    batch_id, run_id, file_id = half_submitted(services)
    settle_pending(services)
    batches.delete_file(services.engine, file_id)

    with TestClient(build_app(services, default_guard="fake")) as api:
        failed = wait_for(api, service, batch_id, "failed")
        finish(services, run_id)
        results = wait_for(api, service, batch_id, "failed")["output_file_id"]
        assert len(rows(api, service, results)) == 3, "what was judged by then stays"

    assert [error["code"] for error in failed["errors"]["data"]] == ["file_gone"]
    assert run_status(services.engine, run_id).state is RunState.CANCELLED


def test_a_file_that_goes_once_all_is_submitted_changes_nothing(services: Services, service: dict[str, str]) -> None:
    batch_id, run_id, file_id = half_submitted(services)
    intake.seal(services.engine, run_id)
    batches.delete_file(services.engine, file_id)

    with TestClient(build_app(services, default_guard="fake")) as api:
        assert wait_until(lambda: submitted(services), timeout_s=20)
        finish(services, run_id)
        wait_for(api, service, batch_id, "completed")


def test_a_batch_that_is_cancelled_after_the_last_look_at_it_is_cancelled(
    services: Services, service: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's request comes when all is submitted, and before that is noted."""
    end = batches.end_submission
    asked: list[bool] = []

    def cancelled_meanwhile(engine: sa.Engine, batch_id: str, **options: bool) -> bool:
        if not asked:
            asked.append(batches.ask_to_cancel(engine, batch_id))
        return end(engine, batch_id, **options)

    monkeypatch.setattr(batches, "end_submission", cancelled_meanwhile)
    with TestClient(build_app(services, default_guard="fake")) as api:
        batch = order(api, service, line("c0", input="a"))
        assert wait_until(lambda: submitted(services), timeout_s=20)
        run_id = api.get(f"/v1/batches/{batch['id']}", headers=service).json()["run_id"]
        finish(services, run_id)
        done = wait_for(api, service, batch["id"], "cancelled")

    assert asked == [True], "the caller was told that a gateway would stop it"
    assert done["request_counts"] == {"total": 1, "completed": 0, "failed": 1}


def test_a_batch_whose_run_was_purged_says_so(api: TestClient, services: Services, service: dict[str, str]) -> None:
    batch = order(api, service, line("c0", input="a"))
    assert wait_until(lambda: submitted(services), timeout_s=20)
    run_id = api.get(f"/v1/batches/{batch['id']}", headers=service).json()["run_id"]
    finish(services, run_id)
    wait_for(api, service, batch["id"], "completed")

    retention.purge(services.engine, timedelta(0), delete=True)

    found = api.get(f"/v1/batches/{batch['id']}", headers=service).json()
    assert (found["status"], found["output_file_id"]) == ("expired", None)
    assert [error["code"] for error in found["errors"]["data"]] == ["purged"]
    assert api.get(f"/v1/files/file-output-{batch['id']}/content", headers=service).status_code == 404
    assert api.post(f"/v1/batches/{batch['id']}/cancel", headers=service).status_code == 409


def test_a_repeated_order_is_the_same_batch(api: TestClient, service: dict[str, str]) -> None:
    body = {"input_file_id": upload(api, service, line("a", input="x")), **ORDER}
    headers = {**service, "Idempotency-Key": "night-1"}
    first, second = (api.post("/v1/batches", headers=headers, json=body).json()["id"] for _ in range(2))

    assert first == second
    assert len(api.get("/v1/batches", headers=service).json()["data"]) == 1


def test_files_belong_to_their_tenant_and_go_when_told(api: TestClient, service: dict[str, str], key_for: Any) -> None:
    file_id = upload(api, service, "a line")
    stranger = key_for(tenant="other")

    assert api.get(f"/v1/files/{file_id}", headers=stranger).status_code == 404
    assert api.post("/v1/batches", headers=stranger, json={"input_file_id": file_id, **ORDER}).status_code == 422
    assert api.get(f"/v1/files/{file_id}/content", headers=service).text == "a line"
    assert api.delete(f"/v1/files/{file_id}", headers=service).json()["deleted"]
    assert api.get(f"/v1/files/{file_id}", headers=service).status_code == 404


def test_where_no_text_stays_a_file_goes_once_it_is_submitted(services: Services, service: dict[str, str]) -> None:
    services.settings = services.settings.model_copy(update={"retention": Retention.HASH})
    with TestClient(build_app(services, default_guard="fake")) as api:
        batch = order(api, service, line("a", input="x"))
        gone = wait_until(
            lambda: api.get(f"/v1/files/{batch['input_file_id']}", headers=service).status_code == 404, timeout_s=20
        )

    assert gone
