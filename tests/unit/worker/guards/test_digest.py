"""Every byte of a checkpoint counts in its digest, and a file that did not change is not read again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import GuardError
from worker.guards import digest as digests
from worker.guards.digest import DigestBook, checkpoint_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "qwen2"}')
    (made / "model.safetensors").write_bytes(os.urandom(300_000))
    return made


def aged(folder: Path) -> Path:
    """The same files, as if they had lain there for a while."""
    for file in folder.iterdir():
        os.utime(file, (1_700_000_000, 1_700_000_000))
    return folder


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written just now counts as settled: a test does not wait."""
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**18))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 299_999), by=st.integers(1, 255))
def test_one_changed_byte_is_another_digest(folder: Path, at: int, by: int) -> None:
    before = checkpoint_digest(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[at] = (content[at] + by) % 256
    (folder / "model.safetensors").write_bytes(content)
    assert checkpoint_digest(folder) != before


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json", "modeling.py"]
)
def test_the_files_beside_the_weights_count_too(folder: Path, name: str) -> None:
    before = checkpoint_digest(folder)
    (folder / name).write_text('{"model_type": "llama"}')
    assert checkpoint_digest(folder) != before


def test_the_same_bytes_elsewhere_are_the_same_digest(folder: Path, tmp_path: Path) -> None:
    assert checkpoint_digest(folder) == checkpoint_digest(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.usefixtures("unhurried")
def test_a_file_that_did_not_change_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = DigestBook(tmp_path / "state" / "digests.json")
    first = checkpoint_digest(folder, book)

    def read_again(file: Path) -> str:
        raise AssertionError(f"{file} is read again")

    monkeypatch.setattr(digests, "_read_through", read_again)
    assert checkpoint_digest(folder, DigestBook(tmp_path / "state" / "digests.json")) == first


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("in_place", [True, False])
def test_an_overwritten_file_of_equal_size_and_time_is_read_again(folder: Path, tmp_path: Path, in_place: bool) -> None:
    book, file = DigestBook(tmp_path / "digests.json"), aged(folder) / "model.safetensors"
    before, old = checkpoint_digest(folder, book), file.stat()
    content = bytearray(file.read_bytes())
    content[150_000] ^= 1
    if in_place:
        with file.open("r+b") as stream:
            stream.write(content)
    else:
        (folder / "new").write_bytes(content)
        (folder / "new").replace(file)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert checkpoint_digest(folder, book) != before


def test_what_was_written_a_moment_ago_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    book = DigestBook(tmp_path / "digests.json")
    checkpoint_digest(folder, book)
    assert not (tmp_path / "digests.json").exists()


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 3}', b"\xff\xfe", b'{"x": [[1, 2], "forged", 3]}'])
def test_a_memory_that_is_broken_or_lost_changes_nothing(folder: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "digests.json"
    first = checkpoint_digest(folder, DigestBook(path))
    path.write_bytes(content)
    assert checkpoint_digest(folder, DigestBook(path)) == first
    path.unlink()
    assert checkpoint_digest(folder, DigestBook(path)) == first


@pytest.mark.usefixtures("unhurried")
def test_a_memory_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder is wanted")
    assert checkpoint_digest(folder, DigestBook(tmp_path / "blocked" / "digests.json")) == checkpoint_digest(folder)


def test_a_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="no safetensors"):
        checkpoint_digest(tmp_path)
