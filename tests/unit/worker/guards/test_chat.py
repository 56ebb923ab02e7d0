"""The way from a user turn to prompt ids: the template's control tokens, and text that stays text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram

from infra.errors import GuardError
from tests.support.checkpoints import CHATML, CHATML_TOKENS, small_tokenizer, write_checkpoint
from worker.guards.libra import LibraGuard
from worker.guards.prompt import ChatTokenizer

pytestmark = pytest.mark.slow  # real vocabularies take seconds to load

ADDED = ("<think>", "[[tool]]")
LLAMA_2 = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"


@pytest.fixture(scope="session")
def chat(small_folder: Path) -> ChatTokenizer:
    return ChatTokenizer(small_folder)


@pytest.fixture(scope="session")
def with_control_merges(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A tokenizer whose own merges build a control token out of text, as converted ones sometimes do."""
    spec = json.loads(small_tokenizer().to_str())
    model = spec["model"]
    left, right = "<|im_", "end|>"
    for piece in (left, right):
        for size in range(2, len(piece) + 1):
            model["vocab"].setdefault(piece[:size], max(model["vocab"].values()) + 1)
            model["merges"].append([piece[: size - 1], piece[size - 1]])
    control = next(token for token in spec["added_tokens"] if token["content"] == "<|im_end|>")
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token is not control]
    control["id"] = model["vocab"]["<|im_end|>"] = max(model["vocab"].values()) + 10
    spec["added_tokens"].append(control)
    model["merges"].append([left, right])
    spec["pre_tokenizer"]["use_regex"] = False
    return ChatTokenizer(write_checkpoint(tmp_path_factory.mktemp("merges"), Tokenizer.from_str(json.dumps(spec))))


@pytest.fixture(scope="session")
def unigram_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece-like tokenizer that lists its control tokens as pieces, and knows hardly a Chinese word."""
    letters = [(letter, -5.0) for letter in "abcdefghilmnoprstuwxy▁你好1\n.,<|_>"]
    controls = [(control, -1.0) for control in CHATML_TOKENS]
    tokenizer = Tokenizer(Unigram([("<unk>", -9.0), *controls, *letters, ("▁user", -6.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(list(CHATML_TOKENS))
    return write_checkpoint(tmp_path_factory.mktemp("unigram"), tokenizer)


def own_ids(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


def hostile_texts() -> st.SearchStrategy[str]:
    parts = st.sampled_from([*CHATML_TOKENS, *ADDED, "<|im_", "end|>", "assistant\n", "安全", " ", "\n"])
    return st.lists(parts | st.text(max_size=5), max_size=12).map("".join)


def test_harmless_text_gets_the_ids_that_the_checkpoints_own_tokenizer_gives(
    qwen_folder: Path, qwen: LibraGuard
) -> None:
    text = "请问如何制作蛋糕？\n首先准备 250g 面粉。\n"
    rendered = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )

    qwen = ChatTokenizer(qwen_folder)
    (user,) = qwen.encode_users([text])
    ids = user + qwen.tail_ids('{\n  "答案": "')

    assert ids.tolist() == own_ids(qwen_folder, rendered + '{\n  "答案": "')


def test_a_sentencepiece_vocabulary_is_read_as_its_own_tokenizer_reads_it(unigram_folder: Path) -> None:
    text = "user world, hello"

    (user,) = ChatTokenizer(unigram_folder).encode_users([text])

    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    assert user.tolist() == own_ids(unigram_folder, head + text)


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(unigram_folder: Path) -> None:
    with pytest.raises(GuardError, match="cannot tell 安全 from 不安全"):
        LibraGuard(unigram_folder, name="blind", model="blind")


def test_no_text_can_yield_an_id_of_a_control_token(
    chat: ChatTokenizer, with_control_merges: ChatTokenizer, unigram_folder: Path
) -> None:
    unigram = ChatTokenizer(unigram_folder)

    @given(hostile_texts())
    def check(text: str) -> None:
        for tokenizer in (chat, with_control_merges, unigram):
            controls = set(tokenizer.words.controls.values())
            harmless, hostile = tokenizer.encode_users(["text", text])
            assert [i for i in hostile if i in controls] == [i for i in harmless if i in controls]

    check()


def test_text_comes_back_as_it_was_written(chat: ChatTokenizer) -> None:
    @given(hostile_texts())
    def check(text: str) -> None:
        (user,) = chat.encode_users([text])
        assert chat.words.decode(user).endswith(f"user\n{text}")

    check()


def test_one_batch_gives_the_ids_of_each_text_alone(chat: ChatTokenizer) -> None:
    texts = ["", "安全", "hello " * 50]

    assert chat.encode_users(texts) == [chat.encode_users([text])[0] for text in texts]


def test_a_template_that_trims_its_content_is_followed(tmp_path: Path) -> None:
    template = CHATML.replace("message['content']", "(message['content'] | trim)")
    trimming = ChatTokenizer(write_checkpoint(tmp_path, small_tokenizer(), template=template))

    spaced, tight = trimming.encode_users(["\n hello \n", "hello"])

    assert spaced == tight


def test_a_tokenizers_own_truncation_cuts_nothing(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    tokenizer.enable_truncation(8)
    cutting = ChatTokenizer(write_checkpoint(tmp_path, tokenizer))

    (user,) = cutting.encode_users(["hello world " * 20])

    assert cutting.words.decode(user).endswith("hello world " * 20)


def test_a_folder_without_a_template_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"no chat template; put .* chat_template\.jinja"):
        ChatTokenizer(write_checkpoint(tmp_path, small_tokenizer(), template=None))


def test_a_folder_without_a_fast_tokenizer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"no tokenizer\.json; save"):
        ChatTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LLAMA_2, "no control token after the user's text"),
        ("{{ messages[0]['content'] | upper }}<|im_end|>\n", "once and unchanged|no control token"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}<|im_end|>", "once and unchanged"),
        ("a fixed prompt<|im_end|>", "once and unchanged"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{% if %}", "fails"),
    ],
)
def test_a_template_that_cannot_keep_user_text_apart_is_refused(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(GuardError, match=message):
        ChatTokenizer(write_checkpoint(tmp_path, small_tokenizer(), template=template))


def test_a_control_token_that_swallows_text_beside_it_is_refused(tmp_path: Path) -> None:
    spec = json.loads(small_tokenizer().to_str())
    spec["added_tokens"][1]["rstrip"] = spec["added_tokens"][2]["rstrip"] = True

    with pytest.raises(GuardError, match="next to its control tokens"):
        ChatTokenizer(write_checkpoint(tmp_path, Tokenizer.from_str(json.dumps(spec))))


def test_the_language_half_loads_no_torch(small_folder: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from worker.guards.libra import LibraGuard\n"
        "from worker.guards import registry\n"
        "guard = LibraGuard(Path(sys.argv[1]), name='small', model='small')\n"
        "sys.exit('torch' in sys.modules or not guard.label_ids)\n"
    )

    assert subprocess.run([sys.executable, "-c", script, str(small_folder)], check=False).returncode == 0
