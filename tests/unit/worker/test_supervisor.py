"""One bad device of several costs one worker: it rests and is tried again, while the others judge."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.errors import DeviceError, GuardError
from infra.process import wait_until
from schemas.guards import Mode
from schemas.items import Kind
from schemas.messages import Lane
from schemas.verdicts import Fingerprint
from worker import supervisor
from worker.consumer.app import ConsumerSpec, leave_facts
from worker.device import process as device_process
from worker.device.inventory import Examination
from worker.device.process import DeviceProcess
from worker.device.spec import DeviceSpec
from worker.guards.fake import FakeGuard
from worker.supervisor import _Device, _Worker

TIMEOUT_S = 20
FINGERPRINT = Fingerprint(
    guard="fake", model="m", revision="r", prompt="p", mode=Mode.SCORE, dtype="none", engine="fake"
)
READY = """echo '{"ready": true}'; exec sleep 60"""
CANNOT_LOAD = """echo '{"ready": false, "error": "no kernel image for this device"}'; exit 5"""


def by_device(**scripts: str) -> str:
    """A shell script that does on each device (`_0`) what is said of it."""
    cases = "".join(f"{name.removeprefix('_')}) {script};; " for name, script in scripts.items())
    return f'case "$CUDA_VISIBLE_DEVICES" in {cases} esac'


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[_Device]]]:
    """Makes the devices of a worker, whose device process is a script and whose consumers do nothing."""
    made: list[_Device] = []
    monkeypatch.setattr(supervisor, "python_module", lambda *_: ["sleep", "60"])

    def make(script: str, *names: str, examine: Callable[[str], Any] | None = None) -> list[_Device]:
        monkeypatch.setattr(device_process, "python_module", lambda *_: ["sh", "-c", script])
        for name in names:
            paths = {"socket_path": tmp_path / f"{name}.sock", "heartbeat_path": tmp_path / f"{name}.pulse"}
            spec = DeviceSpec(guard="fake", device="cuda:0", **paths)
            consumers = [ConsumerSpec("fake", None, lane, str(spec.socket_path), name, 1) for lane in Lane]
            made.append(
                _Device(
                    spec,
                    consumers,
                    worker_id=f"host-1-{name}",
                    visible=name,
                    env={},
                    coordination=SimpleNamespace(give_back=lambda *_: 0),  # type: ignore[arg-type]
                    silence_s=60,
                    examine=(lambda name=name: SimpleNamespace(poll=lambda: examine(name))) if examine else None,
                )
            )
        return made

    yield make
    for device in made:
        device.close()


def settle(devices: list[_Device], *states: str) -> None:
    def look() -> bool:
        for device in devices:
            device.poll()
        return [device.state for device in devices] == list(states)

    assert wait_until(look, timeout_s=TIMEOUT_S), [(device.state, device.trouble) for device in devices]


def test_a_device_that_cannot_load_rests_while_the_others_take_work(devices: Callable[..., list[_Device]]) -> None:
    both = devices(by_device(_0=READY, _1=CANNOT_LOAD), "0", "1")

    settle(both, "ready", "quarantined")

    assert both[1].trouble == "no kernel image for this device"
    assert [consumer.running for consumer in both[0].consumers.processes] == [True, True]
    assert [consumer.running for consumer in both[1].consumers.processes] == [False, False]
    announced = [device.announcement("fake", draining=False) for device in both]
    assert [(one.state, one.trouble) for one in announced] == [
        ("ready", None),
        ("quarantined", "no kernel image for this device"),
    ]


def test_a_resting_device_is_tried_again_after_pauses_that_double(
    devices: Callable[..., list[_Device]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    (device,) = devices(f"if [ -e {mended} ]; then {READY}; fi; {CANNOT_LOAD}", "0")
    rests = []
    for _ in range(3):
        settle([device], "quarantined")
        rests.append(round(device._try_at - supervisor.time.monotonic()))
        monkeypatch.setattr(device, "_try_at", 0.0)
        device.poll()
        assert device.state == "loading"
    assert rests == [30, 60, 120]
    settle([device], "quarantined")
    mended.touch()
    monkeypatch.setattr(device, "_try_at", 0.0)
    settle([device], "ready")
    assert device.trouble is None


def test_an_unusable_device_loads_nothing_and_says_why(devices: Callable[..., list[_Device]], tmp_path: Path) -> None:
    trace = tmp_path / "started"
    answers = iter([None, Examination("torch is not built for it")])
    (device,) = devices(f"touch {trace}; {READY}", "0", examine=lambda _: next(answers))

    settle([device], "quarantined")

    assert device.trouble == "device 0: torch is not built for it"
    assert not trace.exists()


def test_while_its_process_is_replaced_a_device_is_not_ready(devices: Callable[..., list[_Device]]) -> None:
    (device,) = devices(READY, "0")
    settle([device], "ready")
    assert device._process is not None
    device._process.process.kill()

    settle([device], "loading")
    settle([device], "ready")


def test_a_worker_still_announces_its_guards_facts_after_its_device_process_was_replaced(
    devices: Callable[..., list[_Device]],
) -> None:
    (device,) = devices(READY, "0")
    settle([device], "ready")
    fingerprints = {Mode.SCORE: FINGERPRINT}
    leave_facts(device._spec.socket_path, FakeGuard(), fingerprints)
    assert device.announcement("fake", draining=False).fingerprints == {"score": FINGERPRINT.digest}
    assert device._process is not None
    device._process.process.kill()
    settle([device], "loading")
    settle([device], "ready")

    announced = device.announcement("fake", draining=False)

    # Its consumers live on, and know the same model.
    assert (announced.fingerprints, announced.kinds) == ({"score": FINGERPRINT.digest}, [kind.value for kind in Kind])

    device.consumers.processes[0].process.kill()  # type: ignore[union-attr]
    settle([device], "ready")
    assert wait_until(lambda: device.poll() or device.consumers.processes[0].exits == 1, timeout_s=TIMEOUT_S)
    assert device.announcement("fake", draining=False).fingerprints is None, "its successor has not said it yet"


def test_a_device_that_dies_again_and_again_rests_and_its_consumers_with_it(
    devices: Callable[..., list[_Device]],
) -> None:
    (device,) = devices("""echo '{"ready": true}'; exit 7""", "0")

    settle([device], "quarantined")

    assert "died 10 times in a row" in str(device.trouble)
    assert [consumer.running for consumer in device.consumers.processes] == [False, False]


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [(CANNOT_LOAD, GuardError, "no kernel image"), ("exit 9", DeviceError, "ended with code 9 while starting")],
)
def test_a_worker_ends_with_the_first_failure_when_no_device_is_left(
    devices: Callable[..., list[_Device]], script: str, error: type[Exception], said: str
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    presence = SimpleNamespace(announce=lambda _: None, withdraw=lambda _: None)
    worker = _Worker(devices(script, "0", "1"), SimpleNamespace(presence=presence), "fake", 1.0)  # type: ignore[arg-type]
    try:
        with pytest.raises(error, match=said):
            worker.run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_cuda_process_counts_as_nvidia_smi_does_and_yields_to_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    monkeypatch.setattr(device_process, "python_module", lambda *_: ["sh", "-c", f"env > {said}"])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    spec = DeviceSpec(guard="fake", socket_path=tmp_path / "s", heartbeat_path=tmp_path / "p")

    def environment(visible: str) -> dict[str, str]:
        DeviceProcess(spec, visible_devices=visible).process.wait(TIMEOUT_S)
        return dict(line.split("=", 1) for line in said.read_text().splitlines() if "=" in line)

    found = environment("3")
    assert (found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]) == ("3", "PCI_BUS_ID")
    assert (found["OMP_NUM_THREADS"], found["PYTORCH_ALLOC_CONF"]) == ("7", "expandable_segments:True")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment("3")["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in environment(""), "a processor's engine needs all of its cores"
