"""A generator: asked with the text as it stands, and never a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.guards import Mode, is_generator
from schemas.messages import ChunkItem
from schemas.verdicts import Outcome
from tests.support.checkpoints import small_tokenizer, write_checkpoint
from worker.guards.registry import load_guard
from worker.guards.vocabulary import Vocabulary


def test_what_a_generator_says_is_kept_and_never_read_as_a_label(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, small_tokenizer())
    guard = load_guard("writer-a", str(folder))
    words = Vocabulary(folder)
    ((prompt,),) = guard.render([ChunkItem(seq=0, question="", response="请问如何制作蛋糕？")], Mode.GENERATE)
    assert guard.modes == (Mode.GENERATE,)
    assert words.decode(prompt.tolist(), keep_controls=True).endswith(
        "<|im_start|>user\n请问如何制作蛋糕？<|im_end|>\n<|im_start|>assistant\n"
    )

    said = '{\n  "答案": "安全"\n}'
    verdict = guard.read_ids(0, [small_tokenizer().encode(said).ids], single=True)
    assert (verdict.outcome, verdict.label, verdict.raw) == (Outcome.UNPARSEABLE, None, said)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [(name, True) for name in ("generator", "generator-a", "writer", "writer-a")]
    + [(name, False) for name in ("generators", "writers", "fake")],
)
def test_generators_are_known_by_their_name(name: str, is_one: bool) -> None:
    assert is_generator(name) is is_one
