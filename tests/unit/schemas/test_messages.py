"""Messages of a fleet whose machines run several versions."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from schemas.guards import Mode, TextForm
from schemas.items import Example, Label
from schemas.messages import ChunkItem, JudgeChunk, Lane, MessageError, NewerVersionError, VerdictChunk, decode_chunk
from schemas.runs import RunSpec
from schemas.verdicts import Fingerprint, Outcome, Timings, Verdict

FIRST = {
    JudgeChunk: "version run_id chunk_no iteration attempt guard mode lane enqueued_at items",
    VerdictChunk: "version run_id chunk_no iteration attempt worker fingerprint timings verdicts",
    RunSpec: "guard checkpoint mode lane source shard_index shard_count limit repeat seed skip_invalid",
    Verdict: "seq outcome label p_unsafe label_mass categories reason raw prompt_tokens windows",
}
"""What the first version of each knew, and refused to read more of."""


def judge_chunk(**options: bool) -> JudgeChunk:
    return JudgeChunk(
        run_id="r",
        chunk_no=3,
        guard="fake",
        mode=Mode.GENERATE,
        lane=Lane.LIVE,
        enqueued_at=1.5,
        items=(ChunkItem(seq=0, question="", response="x"),),
        **options,
    )


def verdict_chunk(*, cached: bool = False) -> VerdictChunk:
    return VerdictChunk(
        run_id="r",
        chunk_no=3,
        worker="w",
        fingerprint=None,
        timings=Timings(),
        verdicts=(Verdict(seq=0, outcome=Outcome.UNPARSEABLE, cached=cached),),
    )


@pytest.mark.parametrize(
    "model", [judge_chunk(), verdict_chunk(), verdict_chunk().verdicts[0], RunSpec(guard="fake", source="s")]
)
def test_what_uses_no_later_feature_holds_no_later_field(model: BaseModel) -> None:
    assert set(json.loads(model.model_dump_json())) == set(FIRST[type(model)].split())


@pytest.mark.parametrize(
    "chunk", [judge_chunk(cache=True, verdict_only=True), judge_chunk(), verdict_chunk(cached=True)]
)
def test_a_message_is_read_back_as_it_was(chunk: JudgeChunk | VerdictChunk) -> None:
    assert decode_chunk(type(chunk), chunk.model_dump_json()) == chunk


def test_a_message_of_the_first_version_is_read_as_it_was_meant() -> None:
    written = judge_chunk(cache=True, verdict_only=True).model_dump(mode="json", include=set(FIRST[JudgeChunk].split()))

    chunk = decode_chunk(JudgeChunk, json.dumps(written))

    assert (chunk.cache, chunk.verdict_only) == (False, False)


def test_a_field_that_a_later_version_added_is_passed_over() -> None:
    later = {**json.loads(judge_chunk(cache=True).model_dump_json()), "colour": "blue"}
    later["items"][0]["language"] = "zh"

    assert decode_chunk(JudgeChunk, json.dumps(later)) == judge_chunk(cache=True)


def test_a_newer_message_version_and_a_malformed_message_are_refused_apart() -> None:
    newer = {**json.loads(judge_chunk().model_dump_json()), "version": 5}
    with pytest.raises(NewerVersionError):
        decode_chunk(JudgeChunk, json.dumps(newer))
    with pytest.raises(MessageError, match="lane"):
        decode_chunk(JudgeChunk, json.dumps({**newer, "version": 1, "lane": "slow"}))


def test_a_reader_that_knows_no_examples_does_not_pass_them_over() -> None:
    spec = RunSpec(guard="libra-tiny", source="s", examples=(Example(question="问", response="答", label=Label.SAFE),))
    items = judge_chunk().items

    chunk = spec.chunk("r", 0, items, iteration=0, enqueued_at=1.5)

    assert decode_chunk(JudgeChunk, chunk.model_dump_json()) == chunk
    assert (chunk.version, chunk.examples) == (2, spec.examples), "readers of version 1 park it"
    plain = RunSpec(guard="libra-tiny", source="s").chunk("r", 0, items, iteration=0, enqueued_at=1.5)
    assert plain.version == 1
    with pytest.raises(MessageError, match="examples"):
        decode_chunk(JudgeChunk, json.dumps({**json.loads(chunk.model_dump_json()), "version": 1}))


def test_a_verdict_message_tells_no_nonce_from_a_worker_that_knows_none() -> None:
    silent = verdict_chunk()
    without = silent.model_copy(update={"nonce": ""})

    assert "nonce" not in json.loads(silent.model_dump_json())
    assert [decode_chunk(VerdictChunk, chunk.model_dump_json()).nonce for chunk in (silent, without)] == [None, ""]


def test_a_newer_verdict_is_parked_as_newer() -> None:
    with pytest.raises(NewerVersionError, match="knows 1"):
        decode_chunk(VerdictChunk, json.dumps({**json.loads(verdict_chunk().model_dump_json()), "version": 2}))


def test_a_fingerprint_with_a_field_that_is_not_known_is_no_other_fingerprint() -> None:
    fields = Fingerprint(guard="g", model="m", revision="r", prompt="p", mode=Mode.SCORE, dtype="d", engine="e")
    chunk = json.loads(verdict_chunk().model_copy(update={"fingerprint": fields}).model_dump_json())
    chunk["fingerprint"]["quantisation"] = "int8"

    with pytest.raises(MessageError, match="quantisation"):
        decode_chunk(VerdictChunk, json.dumps(chunk))


def test_a_chunk_whose_texts_are_judged_in_another_form_is_parked_by_who_knows_no_forms() -> None:
    run = RunSpec(guard="fake", source="s", form=TextForm.WORSE)

    chunk = run.chunk("r1", 0, (ChunkItem(seq=0, question="", response="x"),), iteration=0, enqueued_at=0.0)

    assert (chunk.version, chunk.form) == (4, TextForm.WORSE)
    assert decode_chunk(JudgeChunk, chunk.model_dump_json()) == chunk
    with pytest.raises(MessageError):
        decode_chunk(JudgeChunk, json.dumps({**json.loads(chunk.model_dump_json()), "version": 3}))
