"""Locks that end with their holders."""

from __future__ import annotations

import subprocess
from pathlib import Path

from infra.process import FileLock, is_held


def test_sharers_keep_an_exclusive_lock_away(tmp_path: Path) -> None:
    """Two may share; a third gets it alone only when both have left."""
    with FileLock(tmp_path / "lock") as keeper:
        with FileLock(tmp_path / "lock") as first, FileLock(tmp_path / "lock") as second:
            assert first.try_shared()
            assert second.try_shared()
            assert not keeper.try_exclusive()
        assert keeper.try_exclusive()


def test_a_lock_lives_on_in_the_process_it_was_handed_to(tmp_path: Path) -> None:
    """Closing our descriptor unlocks nothing while another process has it."""
    lock = FileLock(tmp_path / "lock")
    assert lock.try_exclusive()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]) as heir:
        lock.close()
        assert is_held(tmp_path / "lock")
        heir.communicate()
    assert not is_held(tmp_path / "lock")


def test_a_started_program_does_not_inherit_a_lock_by_accident(tmp_path: Path) -> None:
    """Only a descriptor that is passed on purpose keeps the lock."""
    lock = FileLock(tmp_path / "lock")
    assert lock.try_exclusive()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as stranger:
        lock.close()
        assert not is_held(tmp_path / "lock")
        stranger.communicate()


def test_asking_creates_no_file(tmp_path: Path) -> None:
    """A question leaves no trace."""
    assert not is_held(tmp_path / "lock")
    assert not list(tmp_path.iterdir())
