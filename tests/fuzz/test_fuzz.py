"""Whatever arrives, readers give an answer or one of the errors that they document, and no error shows a text.

A few thousand inputs by default; `make fuzz SEED=2` runs 100,000.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import random
import struct
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from infra.broker.queues import enqueued_at, is_message, task_of
from infra.critic import read_critic
from infra.errors import DataError, DeviceError, GuardError
from infra.guard_catalogue import GUARDS
from producer.datasets import open_dataset
from schemas.guards import Mode
from schemas.messages import ChunkItem, JudgeChunk, Lane, MessageError, VerdictChunk, decode_chunk
from schemas.verdicts import Verdict
from tests.support.checkpoints import small_tokenizer, write_checkpoint
from tests.support.kombu_channel import Channel
from tests.support.make import items, verdicts_for
from tests.support.mutate import mutations
from worker.device.engines.base import EngineInfo
from worker.device.protocol import (
    Answers,
    Failed,
    Header,
    Hello,
    Kind,
    Request,
    Started,
    pack_answers,
    pack_ints,
    pack_rows,
    read_frame,
    unpack_answers,
    unpack_ints,
    unpack_rows,
)
from worker.guards import registry
from worker.guards.fake import FakeGuard
from worker.guards.libra import LibraGuard
from worker.guards.reading import Answer

SEED = int(os.environ.get("FUZZ_SEED", "1"))
INPUTS = int(os.environ.get("FUZZ_INPUTS", "3000"))

SECRET = "text number"
"""In every text of the corpus that a reader may refuse."""

CHUNK = JudgeChunk(
    run_id="r1",
    chunk_no=3,
    guard="fake",
    mode=Mode.SCORE,
    lane=Lane.BULK,
    enqueued_at=1_700_000_000.25,
    items=tuple(
        ChunkItem(seq=seq, question=f"问题 {SECRET}", response=item.response) for seq, item in enumerate(items(3))
    ),
)
JUDGE = [CHUNK.model_dump_json().encode()]
VERDICTS = [verdicts_for(CHUNK).model_dump_json().encode()]
QUEUED = [
    json.dumps(
        {
            "body": "W10=",
            "content-encoding": "utf-8",
            "content-type": "application/x-libra+json",
            "headers": {"task": "libra.judge", "id": "r1/3/1", "enqueued_at": 1_700_000_000.25},
            "properties": {
                "delivery_tag": "t",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "guard.fake.bulk"},
                "body_encoding": "base64",
            },
        }
    ).encode()
]
ROWS = [
    {
        "id": "1",
        "question": f"{SECRET} 1",
        "response": "答",
        "label": "不安全",
        "source": "Real Data",
        "category_name": "c",
    },
    {"id": 2, "text": f"{SECRET} 2"},
    {"prompt": f"{SECRET} 3", "answer": f"{SECRET} 4", "truth": None},
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
ANSWERS = [
    text.encode()
    for text in (
        '{\n  "答案": "安全",\n  "分析": "没有问题"\n}',
        '{"答案": "不安全", "分析": "他说\\"不\\""}',
        "{“答案”：“不安全”}",
        '好的。```json\n{"分析": "x", "答案": "安全"}\n```',
        '{"答案": "不安',
        "unsafe\nS1,S10",
        "Safety: Unsafe\nCategories: Violent, Jailbreak\nRefusal: No",
        "Harmful request: yes\nResponse refusal: no\nHarmful response: no",
        "<score> yes </score>",
        '{"User Safety": "unsafe", "Response Safety": "safe", "Safety Categories": "Violence"}',
        "[Answer] unsafe\n[Analysis] because",
    )
]


def shows_no_text(error: Exception) -> None:
    """A traceback, with what led to it, is what a log gets at worst."""
    assert SECRET not in "".join(traceback.format_exception(error))


def judge_chunk(content: bytes) -> None:
    body = content.decode("utf-8", "surrogatepass" if content.isascii() else "replace")
    for text in (body, body.replace("问", "\ud800")):
        try:
            decode_chunk(JudgeChunk, text)
        except MessageError as error:
            shows_no_text(error)


def verdict_chunk(content: bytes) -> None:
    try:
        decode_chunk(VerdictChunk, content.decode("utf-8", "replace"))
    except MessageError as error:
        shows_no_text(error)


def queued_message(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    assert math.isfinite(enqueued_at(text))
    task_of(text).encode()  # part of a key
    is_message(Channel(), content)


def answer(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    read_critic(text)
    for read in READS:
        for single in (False, True):
            read(text, single)


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _reads() -> list[Callable[[str, bool], Answer]]:
    """How the template guards read a text, as far as their format needs no checkpoint."""
    found = []
    for card in GUARDS.values():
        if "def form(" not in _source(Path(registry.__file__).parent / f"{card.family.value}.py"):
            continue
        with contextlib.suppress(GuardError):
            found.append(registry.format_of(card, Path("no checkpoint")).read)
    return list(dict.fromkeys(found))


READS = _reads()


def rows_of(path: Path) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            for _ in open_dataset(str(path)).rows():
                pass
        except DataError as error:
            shows_no_text(error)

    return read


def frame(header: Header, payload: bytes = b"") -> bytes:
    text = header.model_dump_json().encode()
    return struct.pack("<II", len(text), len(payload)) + text + payload


FRAMES = [
    frame(
        Hello(
            pid=1,
            info=EngineInfo(
                engine="fake",
                dtype="f",
                device="cpu",
                revision="1",
                max_batch_tokens=9,
                max_batch_items=9,
                context_tokens=9,
            ),
        )
    ),
    frame(
        Request(id=1, kind=Kind.SCORE, lane=Lane.BULK, prompts=2, labels=((0,), (1,))), pack_rows([[1, 2], [3, 4, 5]])
    ),
    frame(Started(id=1), pack_ints([0, 1])),
    frame(
        Answers(id=1, kind=Kind.SCORE, count=2, infer_s=0.1, batch_rows=2, tokens=5, padded_tokens=6),
        pack_answers(Kind.SCORE, [0, 1], [[-0.1, -2.0], [-0.5, -1.0]]),
    ),
    frame(
        Answers(id=1, kind=Kind.GENERATE, count=2, infer_s=0.1, batch_rows=2, tokens=5, padded_tokens=6),
        pack_answers(Kind.GENERATE, [0, 1], [[1, 2], [3]]),
    ),
    frame(Failed(id=1, reason=f"{SECRET} 5"), pack_ints([1])),
]


def device_frame(content: bytes) -> None:
    stream = io.BytesIO(content)
    try:
        while True:
            header, payload = read_frame(stream)
            _unpack(header, payload)
    except (DeviceError, OSError) as error:
        shows_no_text(error)


def _unpack(header: Header, payload: bytes) -> None:
    match header:
        case Request():
            unpack_rows(payload, header.prompts)
        case Answers():
            unpack_answers(header, payload)
        case Started() | Failed():
            unpack_ints(payload)


def resealed_frame(content: bytes) -> None:
    """A frame whose lengths hold, so that what is within is reached."""
    head, payload = content[8:-12], content[-12:]
    device_frame(struct.pack("<II", len(head), len(payload)) + head + payload)


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "judge chunk": (judge_chunk, JUDGE),
    "verdict chunk": (verdict_chunk, VERDICTS),
    "queued message": (queued_message, QUEUED),
    "answer": (answer, ANSWERS),
    "device frame": (device_frame, FRAMES),
    "device frame of the right length": (resealed_frame, FRAMES),
}
FILES = {"rows.jsonl": LINES, "rows.json": ARRAY, "rows.jsonl.gz": gzip.compress(LINES)}
SHARE = math.ceil(INPUTS / (len(TARGETS) + len(FILES) + 3))


@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_answers_or_refuses(target: str) -> None:
    read, corpus = TARGETS[target]
    for content in mutations(SEED, corpus, SHARE):
        _reading(read, content)


@pytest.mark.parametrize("name", FILES)
def test_a_data_set_is_read_or_refused(name: str, tmp_path: Path) -> None:
    for content in mutations(SEED, [FILES[name], LINES, ARRAY], SHARE):
        _reading(rows_of(tmp_path / name), content)


def test_a_parquet_file_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"id": ["1", "2"], "response": ["答", "a"], "label": ["安全", None]}), path
    )
    for content in mutations(SEED, [path.read_bytes()], SHARE):
        _reading(rows_of(path), content)


def test_scores_become_a_verdict_whatever_they_are() -> None:
    chance = random.Random(SEED)
    libra = object.__new__(LibraGuard)
    libra.temperature = 1.5
    guards = [FakeGuard(), libra]
    for _ in range(SHARE):
        scores = [tuple(_logprob(chance) for _ in range(2)) for _ in range(chance.randint(1, 3))]
        for guard in guards:
            assert isinstance(guard.read_scores(1, scores), Verdict), scores


def _logprob(chance: random.Random) -> float:
    return chance.choice([-chance.expovariate(1), -chance.expovariate(1e-3), 0.0, -0.0, 1e-7, -math.inf])


def test_generated_ids_become_a_verdict_whatever_they_are(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "small", small_tokenizer(), context_tokens=1_024)
    libra, fake, chance = LibraGuard(folder, name="small", model="small"), FakeGuard(), random.Random(SEED)
    for _ in range(SHARE):
        ids = array("i", [chance.randrange(256) for _ in range(chance.randrange(30))])
        for guard in (libra, fake):
            assert isinstance(guard.read_ids(1, [ids, ids[::-1]]), Verdict), ids


def test_a_message_nested_too_deeply_is_no_message() -> None:
    assert not is_message(Channel(), b"[" * 100_000)
    with pytest.raises(MessageError):
        decode_chunk(JudgeChunk, "[" * 100_000)


def _reading(read: Callable[[bytes], None], content: bytes) -> None:
    try:
        read(content)
    except Exception as error:
        raise AssertionError(f"seed {SEED}, input {content[:2_000]!r}") from error
