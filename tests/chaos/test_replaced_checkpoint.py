"""A checkpoint that is overwritten under a running worker: no verdict bears the other model's fingerprint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import sqlalchemy as sa

torch = pytest.importorskip("torch")

from infra.servers.services import Services  # noqa: E402
from producer.intake.live import LiveClient  # noqa: E402
from schemas.guards import Mode  # noqa: E402
from schemas.items import Label  # noqa: E402
from schemas.messages import Lane  # noqa: E402
from tests.support.families import write_classifier  # noqa: E402
from tests.support.fleet import Fleet, consumer_of, device_of  # noqa: E402
from tests.support.planted import changed  # noqa: E402

KINDS = ["text", "prompt", "response", "pair"]


def test_after_its_device_process_died_a_worker_judges_by_the_new_model_under_the_new_fingerprint(
    fleet: Fleet, services: Services, tmp_path: Path
) -> None:
    folder = tmp_path / "head"
    write_classifier(folder, id2label={0: "safe", 1: "offensive"}, label2id={"safe": 0, "offensive": 1})
    lean = torch.tensor([8.0, -8.0])
    changed("classifier.bias", lambda _: lean)(folder)
    fleet.start_collector()
    worker = fleet.start("worker", "--guard", f"head={folder}", "--devices", "cpu")
    fleet.wait(lambda: fleet.is_ready(worker))
    fleet.wait(lambda: [one.kinds for one in fleet.announced() if one.pid == worker.pid] == [KINDS])
    client = LiveClient(services, guard="head", mode=Mode.CLASSIFY, cache=False)
    try:
        assert client.judge("一", timeout_s=60).label is Label.SAFE
        changed("classifier.bias", lambda _: -lean)(folder)
        assert client.judge("二", timeout_s=60).label is Label.SAFE, "the loaded model goes on"
        consumers = {lane: consumer_of(worker, lane).pid for lane in Lane}
        os.kill(device_of(worker).pid, signal.SIGKILL)
        assert client.judge("三", timeout_s=60).label is Label.UNSAFE
        fleet.wait(lambda: consumer_of(worker, Lane.LIVE).pid != consumers[Lane.LIVE])
    finally:
        client.close()

    with services.engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT label, fingerprint FROM verdicts ORDER BY settled_at")).all()
    (_, one), (_, two), (_, three) = rows
    assert [row.label for row in rows] == ["safe", "safe", "unsafe"]
    assert one == two != three
    assert "checkpoint_replaced" in fleet.logs()
