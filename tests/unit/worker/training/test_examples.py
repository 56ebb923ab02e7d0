"""Rows as ids: what is learnt follows exactly what is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.critic import read_critic
from infra.errors import GuardError
from schemas.guards import Mode
from schemas.items import Label
from schemas.messages import ChunkItem
from tests.support.checkpoints import qwen_tokenizer_json, write_checkpoint
from tests.support.training import dialogues, write_base, write_rows
from worker.training.examples import ExampleEncoder
from worker.training.recipe import DataFile
from worker.training.samples import Sample, read_samples

pytestmark = pytest.mark.slow  # real vocabularies take seconds to load

ANY = 100_000


@pytest.fixture(scope="module", params=["small", "qwen"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExampleEncoder:
    folder = tmp_path_factory.mktemp(request.param)
    return ExampleEncoder(
        write_base(folder) if request.param == "small" else write_checkpoint(folder, qwen_tokenizer_json())
    )


def samples(folder: Path, **changes: object) -> list[Sample]:
    rows = [{**row, **changes} for row in dialogues(4, seed=1)]
    return read_samples([DataFile(path=write_rows(folder / "rows.jsonl", rows))])


def served(encoder: ExampleEncoder, sample: Sample, mode: Mode) -> list[int]:
    item = ChunkItem(seq=0, question=sample.item.question, response=sample.item.response)
    return encoder.guard.render([item], mode)[0][0].tolist()


def test_a_row_begins_with_the_prompt_that_is_served(encoder: ExampleEncoder, tmp_path: Path) -> None:
    for sample in samples(tmp_path, response="<|im_end|>\n“引号” and\ttabs"):
        [row], _ = encoder.encode([sample], ANY)
        assert row.prompt.tolist() == served(encoder, sample, Mode.SCORE)
        assert row.ids[: row.answer].tolist() == served(encoder, sample, Mode.GENERATE)


def test_what_score_mode_reads_is_what_is_learnt_there(encoder: ExampleEncoder, tmp_path: Path) -> None:
    for sample in samples(tmp_path):
        [row], _ = encoder.encode([sample], ANY)
        assert row.ids[row.label] == encoder.first_ids[list(Label).index(sample.label)]


def test_an_answer_is_the_json_of_the_reference_and_ends_the_turn(encoder: ExampleEncoder, tmp_path: Path) -> None:
    analysis = 'He said "no",\n对吗？\\'
    for sample in samples(tmp_path, analyze=analysis):
        [row], _ = encoder.encode([sample], ANY)
        *answer, end = row.ids[row.answer :]
        assert end in encoder.guard.stop_ids
        verdict = encoder.guard.read_ids(0, [answer])
        assert verdict.label is sample.label
        assert verdict.raw
        assert '\\"no\\",\\n对吗？\\\\' in verdict.raw
        assert read_critic(verdict.raw) is sample.label


def test_a_row_without_an_analysis_teaches_its_label_alone(encoder: ExampleEncoder, tmp_path: Path) -> None:
    for sample in samples(tmp_path, analyze=""):
        [row], _ = encoder.encode([sample], ANY)
        learnt = encoder.guard.read_ids(0, [row.ids[row.answer :].tolist()]).raw or ""
        assert learnt.rstrip('"').endswith('"不安全' if sample.label is Label.UNSAFE else '"安全')


def test_rows_that_are_too_long_are_left_out_and_counted(encoder: ExampleEncoder, tmp_path: Path) -> None:
    short, long = samples(tmp_path)[0], samples(tmp_path, response="蛋糕" * 2_000)[0]
    rows, too_long = encoder.encode([short, long], max_tokens=700)
    assert (len(rows), too_long) == (1, 1)


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="no chat template"):
        ExampleEncoder(write_checkpoint(tmp_path, qwen_tokenizer_json(), template=None))
