"""Client and device process over a real socket: what dies is isolated, everything else is answered."""

from __future__ import annotations

import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import tracing
from infra.errors import DeviceChangedError, DeviceError, DeviceProtocolError, GuardError
from infra.otlp import Tracer
from infra.process import wait_until
from schemas.messages import Lane
from tests.support.device import (
    LABELS,
    KeptDevice,
    LaunchedEngine,
    RecordingEngine,
    directive,
    prompt,
    score_request,
    serving,
)
from tests.support.processes import stop
from tests.support.receiver import Receiver
from tests.support.traces import spans_in
from worker.device import client as device_client
from worker.device.client import DeviceClient
from worker.device.engines.base import DeviceLost, OutOfMemory
from worker.device.engines.fake import FakeEngine
from worker.device.heartbeat import Heartbeat, read_pulse
from worker.device.process import DeviceProcess
from worker.device.protocol import (
    PROTOCOL_VERSION,
    Dead,
    DeviceRequest,
    Failed,
    Generated,
    Header,
    Hello,
    Kind,
    Request,
    Scored,
    read_frame,
    send_frame,
)
from worker.device.server import Server, listen
from worker.device.spec import DeviceSpec

TIMEOUT_S = 30


def expected(prompts: Sequence[array[int]]) -> list[Scored]:
    return [Scored(row) for row in FakeEngine().score(prompts, LABELS)]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A Unix socket's path holds 107 bytes; pytest's own folders may be longer."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="dev-", dir="/tmp") as folder:
        yield Path(folder)


def test_many_threads_get_all_their_answers(short_path: Path) -> None:
    def work(thread: int, client: DeviceClient) -> None:
        for round_no in range(10):
            prompts = [prompt(1 + (thread * 17 + at * 5 + round_no) % 90, thread + at) for at in range(24)]
            lane = Lane.LIVE if thread % 2 else Lane.BULK
            assert client.run(score_request(prompts, lane=lane)).answers == expected(prompts)

    with KeptDevice(short_path) as device, ThreadPoolExecutor(8) as pool:
        client = device.client()
        for job in [pool.submit(work, thread, client) for thread in range(8)]:
            job.result(TIMEOUT_S)
        assert client.info.engine == "fake"
        client.close()


def test_the_prompt_that_kills_is_found_and_its_neighbours_are_judged(short_path: Path) -> None:
    prompts = [prompt(5, at) for at in range(200)]
    prompts[77] = directive("crash")
    with KeptDevice(short_path) as device:
        result = device.client(max_deaths=3).run(score_request(prompts))
        assert isinstance(result.answers[77], Dead)
        assert result.answers[77].attempts == 3
        rest = [at for at in range(200) if at != 77]
        assert [result.answers[at] for at in rest] == expected([prompts[at] for at in rest])
        assert result.restarts == 1 + 3


def test_strangers_in_the_batch_of_a_prompt_that_kills_are_judged(short_path: Path) -> None:
    def work(thread: int, client: DeviceClient) -> list[object]:
        prompts = [prompt(5, thread + at) for at in range(16)]
        if thread == 0:
            prompts[3] = directive("crash")
        answers = client.run(score_request(prompts)).answers
        return [answer for answer in answers if isinstance(answer, Dead)]

    with KeptDevice(short_path, fake_batch_s=0.01) as device, ThreadPoolExecutor(4) as pool:
        client = device.client()
        dead = [job.result(TIMEOUT_S) for job in [pool.submit(work, thread, client) for thread in range(4)]]
    assert [len(each) for each in dead] == [1, 0, 0, 0]


def test_a_prompt_that_hangs_is_dead_after_its_deadlines(short_path: Path) -> None:
    prompts = [prompt(5, at) for at in range(8)]
    prompts[2] = directive("hang")
    with KeptDevice(short_path, batch_deadline_s=0.2) as device:
        answers = device.client(max_deaths=2).run(score_request(prompts)).answers
    assert [at for at, answer in enumerate(answers) if isinstance(answer, Dead)] == [2]


@pytest.mark.parametrize("overlaps", [False, True])
def test_isolated_prompts_run_one_by_one_and_only_the_killer_dies(short_path: Path, overlaps: bool) -> None:
    prompts = [prompt(5, at) for at in range(10)]
    prompts[4] = directive("crash")
    with KeptDevice(short_path, fake_overlaps=overlaps) as device:
        result = device.client(max_deaths=1).run(score_request(prompts, isolate=True))
    assert [at for at, answer in enumerate(result.answers) if isinstance(answer, Dead)] == [4]
    assert result.batches == 9
    assert result.restarts == 1


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 64])
def test_a_malformed_frame_costs_only_its_connection(short_path: Path, garbage: bytes) -> None:
    with serving(FakeEngine(), short_path) as (_, path):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(path))
            with raw.makefile("rb") as stream:
                assert isinstance(read_frame(stream)[0], Hello)
                raw.sendall(garbage)
                with pytest.raises(ConnectionError):
                    read_frame(stream)
        assert DeviceClient(path).run(score_request([prompt(3)])).answers == expected([prompt(3)])


def test_no_batch_exceeds_its_budget(short_path: Path) -> None:
    engine = RecordingEngine(max_batch_tokens=300, max_batch_items=7)
    prompts = [prompt(1 + at * 13 % 120, at) for at in range(150)] + [prompt(400)]
    with serving(engine, short_path) as (_, path):
        assert DeviceClient(path).run(score_request(prompts)).answers == expected(prompts)
    for batch in engine.batches:
        assert len(batch) <= 7
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= 300


def test_out_of_memory_halves_the_batch_and_goes_on(short_path: Path) -> None:
    engine = RecordingEngine(max_batch_tokens=640)
    prompts = [prompt(10, at) for at in range(32)]
    prompts[9] = directive("oom", 10)
    with serving(engine, short_path) as (_, path):
        client = DeviceClient(path)
        assert client.run(score_request(prompts)).answers == expected([*prompts[:9], directive("safe"), *prompts[10:]])
        assert [len(batch) for batch in engine.batches[:3]] == [32, 16, 8]
        again = [prompt(40, at) for at in range(8)]
        before = len(engine.batches)
        assert client.run(score_request(again)).answers == expected(again)
        assert len(engine.batches) - before > 1, "the budget stays smaller for a while"


def test_a_prompt_the_engine_chokes_on_is_dead_with_its_reason(short_path: Path) -> None:
    engine = RecordingEngine()
    engine.break_on = lambda prompts: ValueError("bad id") if any(p[0] == 42 for p in prompts) else None
    prompts = [array("i", [1, 2]), array("i", [42, 1]), array("i", [3, 4])]
    with serving(engine, short_path) as (_, path):
        answers = DeviceClient(path).run(score_request(prompts)).answers
    assert isinstance(answers[1], Dead)
    assert "bad id" in answers[1].reason
    assert [answers[0], answers[2]] == expected([prompts[0], prompts[2]])


@pytest.mark.parametrize("bad", [array("i"), prompt(51)])
def test_a_prompt_that_cannot_fit_is_refused(short_path: Path, bad: array[int]) -> None:
    with serving(FakeEngine(context_tokens=50), short_path) as (_, path):
        answers = DeviceClient(path).run(score_request([prompt(50), bad])).answers
    assert isinstance(answers[0], Scored)
    assert isinstance(answers[1], Dead)
    assert "context" in answers[1].reason


def test_a_live_request_overtakes_the_bulk_that_waits(short_path: Path) -> None:
    engine = RecordingEngine(max_batch_items=4)
    engine.gate.clear()
    live = [prompt(9, 5)]
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(2) as pool:
        client = DeviceClient(path)
        bulk = pool.submit(client.run, score_request([prompt(10, at) for at in range(40)]))
        assert wait_until(lambda: len(server.waiting) == 36, timeout_s=TIMEOUT_S)
        urgent = pool.submit(client.run, score_request(live, lane=Lane.LIVE))
        assert wait_until(lambda: len(server.waiting) == 37, timeout_s=TIMEOUT_S)
        engine.gate.set()
        assert urgent.result(TIMEOUT_S).answers == expected(live)
        assert len(bulk.result(TIMEOUT_S).answers) == 40
    assert engine.batches[1] == live


def test_bulk_batches_are_cut_while_live_is_expected(short_path: Path) -> None:
    engine = RecordingEngine(item_s=0.002, max_batch_tokens=6_400, max_batch_items=64)
    bulk = [prompt(100, at) for at in range(128)]
    with serving(engine, short_path) as (_, path):
        client = DeviceClient(path)
        client.run(score_request(bulk))
        assert max(map(len, engine.batches)) == 64
        client.run(score_request([prompt(100)], lane=Lane.LIVE))
        engine.batches.clear()
        client.run(score_request(bulk[:64]))
    assert max(map(len, engine.batches)) <= 12


def test_the_next_batch_is_launched_before_the_rows_of_the_last_are_read(short_path: Path) -> None:
    engine = LaunchedEngine(max_batch_items=8)
    engine.gate.clear()
    prompts = [prompt(10, at) for at in range(40)]
    with serving(engine, short_path) as (_, path), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(DeviceClient(path).run, score_request(prompts))
        assert wait_until(lambda: len(engine.batches) == 2, timeout_s=TIMEOUT_S)
        assert engine.read == []
        engine.gate.set()
        assert asked.result(TIMEOUT_S).answers == expected(prompts)
    assert [len(batch) for batch in engine.batches] == [8] * 5
    assert engine.read == engine.batches
    assert read_pulse(short_path / "s.pulse").deadline == 0


def test_a_live_item_is_launched_behind_one_batch_at_most(short_path: Path) -> None:
    engine = LaunchedEngine(max_batch_items=8)
    engine.gate.clear()
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(2) as pool:
        client = DeviceClient(path)
        bulk = pool.submit(client.run, score_request([prompt(10, at) for at in range(80)]))
        assert wait_until(lambda: len(engine.batches) == 2, timeout_s=TIMEOUT_S)
        live = pool.submit(client.run, score_request([prompt(9, 5)], lane=Lane.LIVE))
        assert wait_until(lambda: server.waiting.waits(Lane.LIVE), timeout_s=TIMEOUT_S)
        engine.gate.set()
        assert live.result(TIMEOUT_S).answers == expected([prompt(9, 5)])
        bulk.result(TIMEOUT_S)
    assert engine.batches[2] == [prompt(9, 5)]


def test_a_device_that_ends_its_batches_before_they_are_looked_at_is_looked_at_sooner(short_path: Path) -> None:
    engine = LaunchedEngine(max_batch_items=8)
    with serving(engine, short_path) as (server, path):
        times = server.times[Kind.SCORE]
        times.note(8 * 10, 0.5)  # it was slow once
        DeviceClient(path).run(score_request([prompt(10, at) for at in range(96)]))
        assert times.look_after_s(8 * 10) < 0.5 / 8


@pytest.mark.parametrize("place", ["launch", "read"])
def test_a_launched_batch_that_fails_costs_no_other(short_path: Path, place: str) -> None:
    engine = LaunchedEngine(max_batch_items=8)
    prompts = [prompt(10, at) for at in range(40)]

    def fails(batch: Sequence[array[int]]) -> Exception | None:
        return OutOfMemory("full") if prompts[11] in batch and len(batch) > 2 else None

    setattr(engine, "break_on_launch" if place == "launch" else "break_on", fails)
    with serving(engine, short_path) as (_, path):
        assert DeviceClient(path).run(score_request(prompts)).answers == expected(prompts)


def test_a_launched_prompt_that_the_engine_chokes_on_is_dead_and_the_next_batch_is_not(short_path: Path) -> None:
    engine = LaunchedEngine(max_batch_items=4)
    engine.break_on = lambda batch: ValueError("bad id") if any(one[0] == 42 for one in batch) else None
    prompts = [prompt(10, at) for at in range(12)]
    prompts[2] = array("i", [42, *prompts[2][1:]])
    with serving(engine, short_path) as (_, path):
        answers = DeviceClient(path).run(score_request(prompts)).answers
    assert [at for at, answer in enumerate(answers) if isinstance(answer, Dead)] == [2]


def test_what_is_not_launched_waits_for_what_was(short_path: Path) -> None:
    engine = LaunchedEngine(max_batch_items=4)
    scored, written = [prompt(10, at) for at in range(8)], [directive("unsafe", 9), directive("safe", 9)]
    with serving(engine, short_path) as (_, path), ThreadPoolExecutor(2) as pool:
        engine.gate.clear()
        client = DeviceClient(path)
        first = pool.submit(client.run, score_request(scored))
        assert wait_until(lambda: len(engine.batches) == 2, timeout_s=TIMEOUT_S)
        second = pool.submit(client.run, DeviceRequest(Kind.GENERATE, Lane.BULK, written, max_new_tokens=40))
        engine.gate.set()
        assert first.result(TIMEOUT_S).answers == expected(scored)
        answers = second.result(TIMEOUT_S).answers
    assert [bytes(answer.ids).decode() for answer in answers if isinstance(answer, Generated)] == [
        '{"答案": "不安全"}',
        '{"答案": "安全"}',
    ]


def test_a_batch_that_writes_is_padded_in_the_plan_and_keeps_within_its_memory(short_path: Path) -> None:
    class Writes(RecordingEngine):
        def generate(self, prompts: Sequence[array[int]], **options: Any) -> list[tuple[int, ...]]:
            self.batches.append(list(prompts))
            self.gate.wait()
            return super().generate(prompts, **options)

    engine = Writes(token_s=1e-9, max_batch_tokens=100_000)
    engine.info = replace(engine.info, max_generate_tokens=2_000)
    assert engine.info.packs
    prompts = [prompt(1 + at * 13 % 120, at) for at in range(60)]
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(1) as pool:
        engine.gate.clear()
        asked = pool.submit(
            DeviceClient(path).run, DeviceRequest(Kind.GENERATE, Lane.BULK, prompts, max_new_tokens=256)
        )
        assert wait_until(lambda: bool(engine.batches), timeout_s=TIMEOUT_S)
        deadline_s = read_pulse(short_path / "s.pulse").deadline - time.monotonic()
        engine.gate.set()
        assert len(asked.result(TIMEOUT_S).answers) == 60
    assert sum(map(len, engine.batches)) == 60
    assert all(len(batch) * (max(map(len, batch)) + 256) <= 2_000 for batch in engine.batches)
    assert deadline_s > server._batch_deadline_s * 3, "256 new tokens take longer than a forward"


def test_a_budget_that_was_too_large_again_comes_back_slower(short_path: Path) -> None:
    engine = RecordingEngine(max_batch_tokens=640)
    with serving(engine, short_path) as (server, path):
        client = DeviceClient(path)
        batches = []
        for _ in range(3):
            client.run(score_request([directive("oom", 10), *(prompt(10, at) for at in range(31))]))
            low = server._budget
            assert low < 640
            before = len(engine.batches)
            while server._budget < 640:
                client.run(score_request([prompt(10)]))
            batches.append(len(engine.batches) - before)
    assert 1.5 * batches[0] < batches[1]
    assert 1.5 * batches[1] < batches[2]


def test_what_a_client_left_behind_is_dropped(short_path: Path) -> None:
    engine = RecordingEngine(max_batch_items=1)
    engine.gate.clear()
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(1) as pool:
        client = DeviceClient(path)
        left = pool.submit(client.run, score_request([prompt(5, at) for at in range(30)]))
        assert wait_until(lambda: len(server.waiting) == 29, timeout_s=TIMEOUT_S)
        client.close()
        assert wait_until(lambda: len(server.waiting) == 0, timeout_s=TIMEOUT_S)
        with pytest.raises(DeviceError, match="closed"):
            left.result(TIMEOUT_S)
        engine.gate.set()
    assert len(engine.batches) == 1


def test_equal_prompts_that_wait_together_are_one_row_and_all_are_answered(short_path: Path) -> None:
    engine = RecordingEngine()
    engine.gate.clear()
    mine, other = prompt(6, 1), prompt(6, 2)
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(4) as pool:
        client = DeviceClient(path)
        first = pool.submit(client.run, score_request([prompt(9, 7)]))
        assert wait_until(lambda: len(engine.batches) == 1, timeout_s=TIMEOUT_S)
        bulk = pool.submit(client.run, score_request([mine, other, mine]))
        again = pool.submit(client.run, score_request([mine], iteration=1))
        assert wait_until(lambda: len(server.waiting) == 4, timeout_s=TIMEOUT_S)
        live = pool.submit(client.run, score_request([mine], lane=Lane.LIVE))
        assert wait_until(lambda: len(server.waiting) == 5, timeout_s=TIMEOUT_S)
        engine.gate.set()
        assert bulk.result(TIMEOUT_S).answers == expected([mine, other, mine])
        for job in (live, again):
            assert job.result(TIMEOUT_S).answers == expected([mine])
        first.result(TIMEOUT_S)
    assert engine.batches[1] == [mine], "a live twin takes the bulk prompts along"
    assert sorted(map(list, engine.batches[2])) == sorted(map(list, [mine, other])), "another judgement is another row"
    pulse = read_pulse(short_path / "s.pulse")
    assert (pulse.batches, pulse.items, pulse.rows, pulse.tokens) == (3, 6, 4, 9 + 3 * 6)


def test_the_time_of_a_batch_is_shared_in_proportion_to_tokens_and_by_twins(short_path: Path) -> None:
    engine = RecordingEngine(batch_s=0.02)
    twin = prompt(30, seed=7)
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(3) as pool:
        engine.gate.clear()
        blocker = pool.submit(DeviceClient(path).run, score_request([prompt(4)]))
        assert wait_until(lambda: bool(engine.batches), timeout_s=TIMEOUT_S)
        small = pool.submit(DeviceClient(path).run, score_request([twin]))
        large = pool.submit(DeviceClient(path).run, score_request([twin, prompt(60), prompt(30)]))
        assert wait_until(lambda: len(server.waiting) == 4, timeout_s=TIMEOUT_S)
        engine.gate.set()
        blocker.result(TIMEOUT_S)
        one, other = small.result(TIMEOUT_S), large.result(TIMEOUT_S)

    assert one.infer_s == other.infer_s, "one batch"
    assert one.share_s + other.share_s == pytest.approx(one.infer_s)
    assert (one.share_s / one.infer_s, other.share_s / one.infer_s) == pytest.approx((15 / 120, 105 / 120))


def test_twins_of_a_prompt_that_kills_die_of_it_alone_and_together(short_path: Path) -> None:
    def work(thread: int, client: DeviceClient) -> list[bool]:
        prompts = [prompt(5, 16 * thread + at) for at in range(6)] + [directive("crash")] * 2
        answers = client.run(score_request(prompts)).answers
        assert answers[:6] == expected(prompts[:6])
        return [isinstance(answer, Dead) and answer.attempts == 2 for answer in answers[6:]]

    with KeptDevice(short_path, fake_batch_s=0.02) as device, ThreadPoolExecutor(2) as pool:
        client = device.client(max_deaths=2)
        dead = [job.result(TIMEOUT_S) for job in [pool.submit(work, thread, client) for thread in range(2)]]
        starts = device.starts
    assert dead == [[True, True]] * 2
    assert starts <= 1 + 2 * 3, "twins in one request share their deaths"


def test_a_twin_stays_when_the_one_who_came_first_leaves(short_path: Path) -> None:
    engine = RecordingEngine()
    engine.gate.clear()
    with serving(engine, short_path) as (server, path), ThreadPoolExecutor(3) as pool:
        leaving, staying = DeviceClient(path), DeviceClient(path)
        first = pool.submit(staying.run, score_request([prompt(9)]))
        assert wait_until(lambda: len(engine.batches) == 1, timeout_s=TIMEOUT_S)
        left = pool.submit(leaving.run, score_request([prompt(5)]))
        assert wait_until(lambda: len(server.waiting) == 1, timeout_s=TIMEOUT_S)
        kept = pool.submit(DeviceClient(path).run, score_request([prompt(5)]))
        assert wait_until(lambda: len(server.waiting) == 2, timeout_s=TIMEOUT_S)
        leaving.close()
        assert wait_until(lambda: len(server.waiting) == 1, timeout_s=TIMEOUT_S)
        engine.gate.set()
        assert kept.result(TIMEOUT_S).answers == expected([prompt(5)])
        first.result(TIMEOUT_S)
        with pytest.raises(DeviceError, match="closed"):
            left.result(TIMEOUT_S)


def test_twins_of_a_prompt_that_cannot_run_are_all_told_why(short_path: Path) -> None:
    engine = RecordingEngine()
    engine.break_on = lambda prompts: ValueError("bad id") if any(p[0] == 42 for p in prompts) else None
    bad = array("i", [42, 1])
    with serving(engine, short_path) as (_, path):
        answers = DeviceClient(path).run(score_request([bad, prompt(5), bad])).answers
    assert [isinstance(answer, Dead) for answer in answers] == [True, False, True]


def test_a_lost_accelerator_ends_the_server(short_path: Path) -> None:
    engine = RecordingEngine()
    engine.break_on = lambda _: DeviceLost("device-side assert")
    server = Server(engine, Heartbeat(short_path / "p"))
    with listen(short_path / "s") as listener, ThreadPoolExecutor(1) as pool:
        threading.Thread(target=server.accept, args=(listener, 0), daemon=True).start()
        run = pool.submit(server.run)
        client = DeviceClient(short_path / "s")
        threading.Thread(target=lambda: _ignoring_loss(client), daemon=True).start()
        with pytest.raises(DeviceLost):
            run.result(TIMEOUT_S)
        client.close()


def _ignoring_loss(client: DeviceClient) -> None:
    with pytest.raises(DeviceError):
        client.run(score_request([prompt(3)]))


def test_generation_crosses_the_socket(short_path: Path) -> None:
    with serving(FakeEngine(), short_path) as (_, path):
        request = DeviceRequest(Kind.GENERATE, Lane.BULK, [directive("unsafe"), directive("safe")], max_new_tokens=99)
        answers = DeviceClient(path).run(request).answers
    texts = [bytes(answer.ids).decode() for answer in answers if isinstance(answer, Generated)]
    assert texts == ['{"答案": "不安全"}', '{"答案": "安全"}']


def test_classes_cross_the_socket(short_path: Path) -> None:
    with serving(FakeEngine(), short_path) as (_, path):
        request = DeviceRequest(Kind.CLASSIFY, Lane.LIVE, [directive("unsafe"), directive("safe")])
        answers = DeviceClient(path).run(request).answers
    assert [answer.logprobs[0] < answer.logprobs[1] for answer in answers if isinstance(answer, Scored)] == [
        True,
        False,
    ]


def test_without_a_device_process_the_client_gives_up(short_path: Path) -> None:
    with pytest.raises(DeviceError, match="no device process"):
        DeviceClient(short_path / "nobody", reconnect_timeout_s=0.1).run(score_request([prompt(3)]))


class Trained(FakeEngine):
    """The fake engine with weights of a revision of its own."""

    def __init__(self, revision: str) -> None:
        super().__init__()
        self.info = replace(self.info, revision=revision)


def test_a_respawned_process_with_another_model_answers_nobody_who_knows_the_old_one(short_path: Path) -> None:
    with serving(Trained("a"), short_path) as (_, path):
        client = DeviceClient(path, expected=DeviceClient(path).info)
        assert client.run(score_request([prompt(3)])).answers == expected([prompt(3)])
        client._connected().close()  # as its process's end closes it
    with serving(Trained("a"), short_path):
        assert client.run(score_request([prompt(3)])).answers == expected([prompt(3)])
        client._connected().close()
    with serving(Trained("b"), short_path):
        for _ in range(2):
            with pytest.raises(DeviceChangedError, match="its checkpoint was replaced: fake none b instead of"):
                client.run(score_request([prompt(3)]))
        assert DeviceClient(path).run(score_request([prompt(3)])).answers == expected([prompt(3)])


def spec_in(folder: Path, **options: object) -> DeviceSpec:
    fields = {"guard": "fake", "engine": "fake", "socket_path": folder / "d.sock", "heartbeat_path": folder / "d.pulse"}
    return DeviceSpec.model_validate({**fields, **options})


def test_sigterm_lets_the_batch_in_hand_be_answered(short_path: Path) -> None:
    process = DeviceProcess(spec_in(short_path, fake_batch_s=0.3))
    process.wait_ready(TIMEOUT_S)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(DeviceClient(short_path / "d.sock").run, score_request([prompt(4)]))
        assert wait_until(lambda: process.stats().deadline > 0, timeout_s=TIMEOUT_S)
        assert process.hangs(time.monotonic()) is None
        assert process.hangs(time.monotonic() + 0.9) is None
        assert stop(process.process, grace_s=TIMEOUT_S) == 0
        assert job.result(TIMEOUT_S).answers == expected([prompt(4)])
    pulse = process.stats()
    assert (pulse.batches, pulse.items, pulse.tokens, pulse.deadline) == (1, 1, 4, 0)
    assert process.process.poll() is not None


def test_an_idle_process_stops_at_once(short_path: Path) -> None:
    process = DeviceProcess(spec_in(short_path), visible_devices="")
    process.wait_ready(TIMEOUT_S)
    assert stop(process.process, grace_s=TIMEOUT_S) == 0


def test_a_load_failure_says_why(short_path: Path) -> None:
    process = DeviceProcess(spec_in(short_path, engine="transformers", guard="no-such-guard"))
    with pytest.raises(GuardError, match="no-such-guard"):
        process.wait_ready(TIMEOUT_S)
    assert process.process.returncode == GuardError.exit_code


def test_a_process_that_is_not_ready_in_time_is_killed(short_path: Path) -> None:
    process = DeviceProcess(spec_in(short_path))
    with pytest.raises(DeviceError, match="not ready"):
        process.wait_ready(0)
    assert process.process.poll() is not None


def test_one_batch_that_serves_two_chunks_is_one_span_linked_to_both(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = RecordingEngine()
    engine.gate.clear()

    def ask(seed: int) -> None:
        with tracing.span(f"asker {seed}"):
            DeviceClient(path).run(score_request([prompt(4, seed), prompt(5, seed)]))

    with Receiver().running() as receiver, serving(engine, short_path) as (server, path), ThreadPoolExecutor(3) as pool:
        tracer = Tracer(f"http://127.0.0.1:{receiver.port}", "test")
        monkeypatch.setattr(tracing, "_tracer", tracer)
        first = pool.submit(ask, 1)
        assert wait_until(lambda: len(engine.batches) == 1, timeout_s=TIMEOUT_S)  # the device is busy
        others = [pool.submit(ask, seed) for seed in (2, 3)]
        assert wait_until(lambda: len(server.waiting) == 4, timeout_s=TIMEOUT_S)
        engine.gate.set()
        for job in [first, *others]:
            job.result(TIMEOUT_S)
        tracer.close()

    span_of = {seen.span.span_id: seen for seen in spans_in(receiver)}
    batches = [seen for seen in span_of.values() if seen.name == "libra.device.batch"]
    asked_by = [{span_of[link.span_id].name for link in batch.span.links} for batch in batches]
    assert asked_by == [{"asker 1"}, {"asker 2", "asker 3"}]
    assert [batch.about["libra.items"] for batch in batches] == [2, 4]
    assert all(not batch.span.parent_span_id for batch in batches)


@contextmanager
def impostor(path: Path, hello: Hello, answers: Callable[[Request], Header] | None = None) -> Iterator[Path]:
    """A device process that greets once and answers one request as it pleases."""
    address = path / "impostor.sock"

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            send_frame(connection, hello)
            if answers is not None:
                request, _ = read_frame(stream)
                assert isinstance(request, Request)
                send_frame(connection, answers(request), array("i", [0]).tobytes())
            stream.read()  # until the client leaves

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_the_answer_to_another_request_is_no_answer(short_path: Path) -> None:
    other = lambda request: Failed(id=request.id + 1, reason="another's")  # noqa: E731
    greeting = Hello(pid=1, info=FakeEngine().info)
    with impostor(short_path, greeting, other) as path, pytest.raises(DeviceError, match="another request"):
        DeviceClient(path).run(score_request([prompt(3)]))


def test_a_device_process_of_another_protocol_is_refused_and_no_prompt_is_blamed(short_path: Path) -> None:
    newer = Hello(pid=1, info=FakeEngine().info, version=PROTOCOL_VERSION + 1)
    with impostor(short_path, newer) as path, pytest.raises(DeviceProtocolError, match="another protocol"):
        DeviceClient(path).run(score_request([prompt(3)]))


def test_a_request_larger_than_a_frame_goes_in_pieces(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_client, "MAX_PAYLOAD_BYTES", 400)
    prompts = [prompt(20, at) for at in range(30)] + [prompt(200)]
    with serving(FakeEngine(), short_path) as (_, path):
        answers = DeviceClient(path).run(score_request(prompts)).answers

    assert answers[:30] == expected(prompts[:30])
    assert isinstance(answers[30], Dead)
    assert "too many for the device socket" in answers[30].reason
