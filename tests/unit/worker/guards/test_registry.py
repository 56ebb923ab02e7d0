"""Guards by name, folder and hub id: what is found, and what a person is told where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from infra.errors import GuardError
from worker.guards import registry
from worker.guards.fake import FakeGuard
from worker.guards.registry import is_fake, load_guard, resolve_checkpoint

QWEN = "qwen2.5-0.5b-instruct"


@pytest.fixture(autouse=True)
def forget_resolved() -> None:
    registry._download.cache_clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, small_folder: Path) -> list[dict[str, Any]]:
    """A hub that has everything; what was asked of it."""
    asked: list[dict[str, Any]] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append({"hub_id": hub_id, **options})
        return str(small_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_the_fake_guard_needs_no_checkpoint() -> None:
    assert isinstance(load_guard("fake"), FakeGuard)
    with pytest.raises(GuardError, match="no checkpoint"):
        resolve_checkpoint("fake")


def test_the_fake_guard_runs_under_another_name_but_replaces_no_known_guard() -> None:
    assert isinstance(load_guard("small", "fake"), FakeGuard)
    assert not is_fake(QWEN, "fake")


def test_a_location_replaces_a_guards_own_checkpoint(small_folder: Path) -> None:
    guard = load_guard(QWEN, str(small_folder))

    assert (guard.name, guard.model) == (QWEN, small_folder.name)
    assert resolve_checkpoint(QWEN, str(small_folder)) == small_folder


def test_an_unknown_name_with_a_folder_is_asked_in_libras_words(small_folder: Path) -> None:
    guard = load_guard("mine", str(small_folder))

    assert (guard.name, guard.model) == ("mine", small_folder.name)
    assert len(guard.label_ids) == 2


def test_a_card_is_fetched_from_the_hub_once_and_without_code_or_pickles(hub: list[dict[str, Any]]) -> None:
    guard = load_guard(QWEN)
    resolve_checkpoint(QWEN)

    (asked,) = hub
    assert guard.model == asked["hub_id"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert asked["revision"] is None
    assert not {"*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])


def test_a_hub_id_is_a_location_too(hub: list[dict[str, Any]]) -> None:
    assert load_guard("mine", "someone/a-model").model == "someone/a-model"
    assert [asked["hub_id"] for asked in hub] == ["someone/a-model"]


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(GuardError, match=r"no guard named 'libra-tyni'; did you mean libra-tiny"):
        load_guard("libra-tyni")
    with pytest.raises(GuardError, match="known: libra-tiny, fake"):
        resolve_checkpoint("zzzzzz")


@pytest.mark.parametrize("location", ["/no/such/folder", "./nothing", "~/nothing", "nothing", "a/b/c", ""])
def test_a_location_that_is_nowhere_is_named(location: str) -> None:
    with pytest.raises(GuardError, match="neither a folder nor a hub id"):
        resolve_checkpoint("mine", location)


def test_a_bundled_checkpoint_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry.BUNDLED, "libra-tiny", tmp_path / "absent")

    with pytest.raises(GuardError, match=r"libra-tiny: its checkpoint .*absent is not there"):
        load_guard("libra-tiny")


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"mine: .* lacks config\.json, tokenizer\.json, \*\.safetensors"):
        resolve_checkpoint("mine", str(tmp_path))


def test_a_tokenizer_that_needs_remote_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}')

    with pytest.raises(GuardError, match=r"needs its own tokenizer code, which is not run"):
        resolve_checkpoint("mine", str(tmp_path))


def test_an_absent_hub_client_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(GuardError, match=r"pip install 'libra-fleet\[hub\]'"):
        resolve_checkpoint(QWEN)


def test_an_absent_network_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a page of advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    with pytest.raises(GuardError) as caught:
        resolve_checkpoint(QWEN)
    assert str(caught.value) == "cannot fetch Qwen/Qwen2.5-0.5B-Instruct from the Hugging Face hub: no route to host"
