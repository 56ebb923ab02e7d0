"""A checkpoint that is not what it says ends every command that would judge with it; an overwritten one is another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from infra.servers.services import services  # noqa: E402
from infra.settings import Settings  # noqa: E402
from tests.support.checkpoints import small_tokenizer, write_checkpoint, write_model  # noqa: E402
from tests.support.cli import Cli  # noqa: E402
from tests.support.families import write_classifier  # noqa: E402
from tests.support.planted import GENERATIVE, changed  # noqa: E402

FAULTS = ("no head", "torch.compile", "NaN", "a git-LFS pointer", ".bin only")


@pytest.fixture(scope="module")
def libra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("home")
    sound = write_model(write_checkpoint(home / "sound", small_tokenizer(whole=["安全", "不安全"])))
    for name in FAULTS:
        GENERATIVE[name].plant(shutil.copytree(sound, home / name))
    rows = [{"id": str(at), "response": f"文本 {at}", "label": "安全" if at % 2 else "不安全"} for at in range(4)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with services(Settings(state_dir=home / "state")):
        yield Cli(home, LIBRA_STATE_DIR=str(home / "state"))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["fleet worker", "run start rows.jsonl --local", "judge 你好", "fleet doctor"])
def test_every_command_that_would_judge_ends_with_5_and_the_reason(libra: Cli, fault: str, command: str) -> None:
    only_loaded = GENERATIVE[fault].only_loaded
    arguments = [*command.split(), "--guard", f"mine={libra.folder / fault}", "--devices", "cpu"]
    done = libra.process(*arguments)
    if only_loaded and command == "fleet doctor":
        assert done.returncode != 5, "the doctor reads headers, and loads nothing"
        return
    assert done.returncode == 5, done.stderr
    assert fault.split(maxsplit=1)[0] in done.stdout + done.stderr or "mine" in done.stdout + done.stderr
    reason = GENERATIVE[fault].says.split("\\")[0].split(".*")[0].strip("'.")
    assert reason in done.stdout + done.stderr


def test_infer_refuses_one_too(libra: Cli) -> None:
    place = ("--data_path", "rows.jsonl", "--out_path", "out", "--devices", "cpu")
    for switch in ((), ("--is_instruct", "0")):
        done = libra.process("infer", "--base_model", str(libra.folder / "no head"), *place, *switch)
        assert done.returncode == 5, done.stderr
        assert "lacks lm_head.weight" in done.stderr


def test_an_overwritten_head_is_another_guard_for_the_cache(libra: Cli) -> None:
    folder = libra.folder / "classifier"
    write_classifier(folder, id2label={0: "safe", 1: "offensive"}, label2id={"safe": 0, "offensive": 1})
    lean = torch.tensor([8.0, -8.0])
    changed("classifier.bias", lambda _: lean)(folder)
    judge = ("judge", "同一条文本", "--guard", f"head={folder}", "--mode", "classify", "--devices", "cpu")
    before = libra.json(*judge)
    assert (before["label"], libra.json(*judge)["cached"]) == ("safe", True)
    changed("classifier.bias", lambda _: -lean)(folder)
    after = libra.json(*judge)
    assert (after["label"], after.get("cached", False)) == ("unsafe", False)
