"""OpenAI's own client, unchanged, and ours, against a running gateway with a real worker and collector."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from infra.errors import DataError, UsageError
from infra.ledger.audit import audit
from infra.process import wait_until
from infra.servers.services import Services
from libra_fleet import AuthenticationError, BadRequestError, Client, ItemRequest
from schemas.items import Label
from schemas.verdicts import Outcome
from tests.support.cli import Cli
from tests.support.fleet import Fleet
from tests.support.gateway import free_port, new_key, start_gateway


def test_the_official_client_and_ours_get_what_they_ask_for(fleet: Fleet, services: Services, tmp_path: Path) -> None:
    fleet.start_collector()
    fleet.start_worker()
    port = free_port()
    start_gateway(fleet, port)
    key = new_key(services, tenant="openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

    _moderates(client)
    _refuses(client, port)
    _runs_a_batch(client, fleet, services)
    _ours(f"http://127.0.0.1:{port}", new_key(services))
    _pipe(f"http://127.0.0.1:{port}", new_key(services, tenant="piped"), tmp_path)


def _moderates(client: openai.OpenAI) -> None:
    one = client.moderations.create(input="hello [[fake:safe]]")
    many = client.moderations.create(input=["[[fake:unsafe]] a", "[[fake:safe]] b"], model="omni-moderation-latest")
    parts = client.moderations.create(input=[{"type": "text", "text": "[[fake:unsafe]]"}], model="fake")
    unread = client.moderations.create(input="[[fake:unparseable]]").results[0]

    assert [result.flagged for result in one.results] == [False]
    assert one.results[0].categories.violence is False
    assert [result.flagged for result in many.results] == [True, False]
    assert many.model == "fake"
    assert many.results[0].categories.violence is True, "this guard names no category, so all are true"
    assert many.results[0].category_scores.violence > 0.5
    assert many.results[0].model_extra is not None
    assert many.results[0].model_extra["libra"]["p_unsafe"] > 0.5
    assert parts.results[0].flagged
    assert (unread.flagged, unread.model_extra["libra"]["outcome"]) == (True, "unparseable")  # type: ignore[index]
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "libra-fleet"


def _refuses(client: openai.OpenAI, port: int) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as bad:
        client.moderations.create(input="a", model="no-such-guard")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="lk_no").moderations.create(input="a")

    assert bad.value.response.json()["field"] == "model"
    assert (bad.value.param, bad.value.code) == ("model", "invalid-field")
    assert "no guard named" in str(bad.value), "the client shows the reason"


def _runs_a_batch(client: openai.OpenAI, fleet: Fleet, services: Services) -> None:
    texts = ["[[fake:safe]]", "[[fake:unsafe]]", "好"]
    lines = [
        json.dumps({"custom_id": f"c{at}", "method": "POST", "url": "/v1/moderations", "body": {"input": text}})
        for at, text in enumerate(texts)
    ]
    upload = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    bad = client.files.create(file=("bad.jsonl", b'{"custom_id": "x"}\nno json\n'), purpose="batch")
    order = {"endpoint": "/v1/moderations", "completion_window": "24h", "metadata": {"night": "1"}}
    batch = client.batches.create(input_file_id=upload.id, **order)  # type: ignore[arg-type]
    failing = client.batches.create(input_file_id=bad.id, **order)  # type: ignore[arg-type]
    fleet.wait(lambda: client.batches.retrieve(batch.id).status == "completed")
    fleet.wait(lambda: client.batches.retrieve(failing.id).status == "failed")

    done = client.batches.retrieve(batch.id)
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.metadata) == (3, 3, {"night": "1"})
    assert done.output_file_id is not None
    results = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    flagged = {row["custom_id"]: row["response"]["body"]["results"][0]["flagged"] for row in results}
    assert {"c0": False, "c1": True}.items() <= flagged.items()
    assert len(flagged) == 3
    errors = client.batches.retrieve(failing.id).errors
    assert errors is not None
    assert [(error.line, error.code) for error in errors.data or []] == [
        (1, "invalid_request"),
        (2, "invalid_json_line"),
    ]
    assert {found.id for found in client.batches.list(limit=1)} == {batch.id, failing.id}
    assert audit(services.engine, done.run_id).sound  # type: ignore[attr-defined]


def _ours(url: str, key: str) -> None:
    texts = [f"text {at} [[fake:{'unsafe' if at % 3 else 'safe'}]]" for at in range(30)]
    expected = [Label.UNSAFE if at % 3 else Label.SAFE for at in range(30)]
    with Client(url, key) as client, ThreadPoolExecutor(30) as pool:
        judged = list(pool.map(client.judge, texts))
        named = ItemRequest(text="a", custom_id="c1")
        ids = client.submit([named, ItemRequest(response="r", question="q", metadata={"k": "v"})])
        (unread,) = client.judge_all([ItemRequest(text="[[fake:unparseable]]")])
        with pytest.raises(BadRequestError, match=r"items\.0\.text"):
            client.submit([ItemRequest(text="good"), ItemRequest(text=" ")])
        with pytest.raises(AuthenticationError), Client(url, "lk_no") as stranger:
            stranger.submit([named])
        with pytest.raises(TimeoutError), Client("http://127.0.0.1:9", key, timeout_s=0.1) as nobody:
            nobody.submit([named])
        assert wait_until(lambda: len(list(client.stream(follow=False))) == 34, timeout_s=10)
        seen = list(client.stream(follow=False))
        rest = list(client.stream(str(seen[9].cursor), follow=False))

    assert [one.label for one in judged] == expected
    assert (unread.outcome, unread.label, unread.p_unsafe) == (Outcome.UNPARSEABLE, None, None)
    assert rest == seen[10:]
    assert {one.id for one in seen} > set(ids)


def _pipe(url: str, key: str, folder: Path) -> None:
    rows = "".join(json.dumps({"id": f"r{at}", "text": f"[[fake:safe]] {at}"}) + "\n" for at in range(5))
    libra = Cli(folder, LIBRA_API_KEY=key)
    accepted = libra("submit", "-", "--url", url, typed=rows)
    judged = libra("submit", "-", "--url", url, "--wait", typed=rows)

    assert [json.loads(line)["custom_id"] for line in accepted.stdout.splitlines()] == [f"r{at}" for at in range(5)]
    assert {json.loads(line)["label"] for line in judged.stdout.splitlines()} == {"safe"}
    assert libra("submit", "-", "--url", url, typed="no json\n").returncode == DataError.exit_code
    stranger = Cli(folder, LIBRA_API_KEY="lk_no")
    assert stranger("submit", "-", "--url", url, typed=rows).returncode == UsageError.exit_code
