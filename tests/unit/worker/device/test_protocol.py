"""Frames survive the way there and back; anything else is refused."""

from __future__ import annotations

import contextlib
import io
import socket
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DeviceError
from schemas.messages import Lane
from worker.device import protocol
from worker.device.engines.base import EngineInfo
from worker.device.protocol import Generated, Kind, Scored

IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20)
INFO = EngineInfo("fake", "none", "cpu", "1", 10, 2, 100)
HEADERS = [
    protocol.Hello(pid=7, info=INFO),
    protocol.Request(
        id=1,
        kind=Kind.SCORE,
        lane=Lane.LIVE,
        alone=True,
        prompts=2,
        labels=((1, 2), (3,)),
        stop_ids=(9,),
    ),
    protocol.Started(id=3),
    protocol.Answers(id=1, kind=Kind.SCORE, count=2, infer_s=0.25, batch_rows=4, tokens=10, padded_tokens=16),
    protocol.Failed(id=2, reason="zu groß"),
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.type)
def test_a_frame_arrives_as_it_was_sent(header: protocol.Header) -> None:
    left, right = socket.socketpair()
    with left, right, right.makefile("rb") as stream:
        protocol.send_frame(left, header, b"payload")
        assert protocol.read_frame(stream) == (header, b"payload")


@given(st.lists(IDS, max_size=10))
def test_rows_of_ids_survive(rows: list[list[int]]) -> None:
    assert [list(row) for row in protocol.unpack_rows(protocol.pack_rows(rows), len(rows))] == rows


@given(st.binary(max_size=64), st.integers(0, 8))
def test_any_payload_is_rows_or_refused(payload: bytes, count: int) -> None:
    try:
        rows = protocol.unpack_rows(payload, count)
    except DeviceError:
        return
    assert len(rows) == count


def answers(kind: Kind, count: int) -> protocol.Answers:
    return protocol.Answers(id=1, kind=kind, count=count, infer_s=0.1, batch_rows=3, tokens=1, padded_tokens=1)


def test_scores_survive_bit_by_bit() -> None:
    payload = protocol.pack_answers(Kind.SCORE, [4, 2], [(-0.1, float("-inf")), (1e-300, -3.0)])
    assert protocol.unpack_answers(answers(Kind.SCORE, 2), payload) == [
        (4, Scored((-0.1, float("-inf")))),
        (2, Scored((1e-300, -3.0))),
    ]


def test_generated_ids_survive() -> None:
    payload = protocol.pack_answers(Kind.GENERATE, array("i", [1, 0]), [(5, 6, 7), ()])
    expected = [(1, Generated((5, 6, 7))), (0, Generated(()))]
    assert protocol.unpack_answers(answers(Kind.GENERATE, 2), payload) == expected


@pytest.mark.parametrize("kind", list(Kind))
@given(payload=st.binary(max_size=64), count=st.integers(1, 8))
def test_any_payload_is_answers_or_refused(kind: Kind, payload: bytes, count: int) -> None:
    with contextlib.suppress(DeviceError):
        assert len(protocol.unpack_answers(answers(kind, count), payload)) == count


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x10\0\0\0\0\0\0\0not json at all.",
        b"\x13\0\0\0\0\0\0\0" + b'{"type":"mystery!"}',
    ],
)
def test_what_is_no_frame_is_refused(content: bytes) -> None:
    with pytest.raises(DeviceError):
        protocol.read_frame(io.BytesIO(content))


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02\0\0\0\0\0\0\0{", b"\x02\0\0\0\x04\0\0\0{}ab"])
def test_a_stream_that_ends_is_a_lost_connection(content: bytes) -> None:
    with pytest.raises(ConnectionError):
        protocol.read_frame(io.BytesIO(content))


def test_a_frame_above_the_limit_is_not_sent() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(DeviceError, match="too large"):
        protocol.send_frame(left, protocol.Started(id=1), bytes(protocol.MAX_PAYLOAD_BYTES + 1))
