"""The digest of a checkpoint: every byte of the files that make its numbers. Torch-free; knows nothing of guards.

A file is read once and remembered by path, size, times and inode, so that a start does not read 15 GB again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Final

from blake3 import blake3

from infra.errors import GuardError
from infra.log import get_logger

_PARTS: Final = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.index.json",
    "*.safetensors",
    "*.py",
)
_BLOCK_BYTES: Final = 16 << 20
_SETTLED_NS: Final = 2_000_000_000
"""A file written later than this before it was read may change again within the same tick of the disk's clock."""
_REMEMBERED: Final = 1_000

log = get_logger(__name__)

Identity = tuple[int, ...]


class DigestBook:
    """Digests of files by what the disk says of them, in one small file that may be lost without harm."""

    def __init__(self, path: Path | None) -> None:
        """None remembers nothing."""
        self._path = path

    def digest(self, file: Path) -> str:
        """Return a file's digest (64 hex characters); read only if it is not remembered as it now is.

        Raises:
            GuardError: the file changes while it is read.
        """
        before = _identity(file)
        known = self._read().get(str(file.resolve()))
        if known and known[0] == list(before):
            return str(known[1])
        digest = _read_through(file)
        if _identity(file) != before:
            raise GuardError(f"{file} is being written; wait until the checkpoint is complete")
        if time.time_ns() - max(before[1:3]) > _SETTLED_NS:
            self._keep(file, before, digest)
        return digest

    def _read(self) -> dict[str, list[object]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8")) if self._path else {}
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 2}

    def _keep(self, file: Path, identity: Identity, digest: str) -> None:
        if self._path is None:
            return
        known = self._read()
        known.pop(str(file.resolve()), None)
        known[str(file.resolve())] = [list(identity), digest]
        fresh = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(dict(list(known.items())[-_REMEMBERED:])), encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            log.warning("digest_not_remembered", error=str(error))


def _identity(file: Path) -> Identity:
    """Size, both times, inode and device: ctime changes even where a copy restores mtime."""
    try:
        found = file.stat()
    except OSError as error:
        raise GuardError(f"cannot read {file}: {error.strerror}; download it again") from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _read_through(file: Path) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                hasher.update(block)
    except OSError as error:
        raise GuardError(f"cannot read {file}: {error.strerror}") from error
    return hasher.hexdigest()


def checkpoint_digest(checkpoint: Path, book: DigestBook | None = None) -> str:
    """16 hex characters that tell checkpoints apart, down to one value of one tensor.

    Covers the name and every byte of each file that makes its numbers: weights, index, config, code of its own. What
    shapes a prompt (tokenizer, template, calibration) is in the guard's prompt digest.

    Raises:
        GuardError: the folder holds no safetensors, or a file cannot be read or changes meanwhile.
    """
    files = _parts(checkpoint)
    if not any(file.suffix == ".safetensors" for file in files):
        raise GuardError(f"{checkpoint} holds no safetensors files")
    known = book or DigestBook(None)
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.name}\0{known.digest(file)}\0".encode())
    return digest.hexdigest()


def snapshot(checkpoint: Path) -> dict[str, Identity]:
    """What the disk says of the files that `checkpoint_digest` covers: equal as long as none was written."""
    return {file.name: _identity(file) for file in _parts(checkpoint)}


def _parts(checkpoint: Path) -> list[Path]:
    return sorted({file for pattern in _PARTS for file in checkpoint.glob(pattern)})
