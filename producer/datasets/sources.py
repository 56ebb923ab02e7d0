"""The files that the user's words stand for: a file, a folder, stdin, a data set of the hub, or `demo`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final, NamedTuple

from infra.errors import DataError

_DEMO: Final = Path(__file__).parents[1] / "data" / "demo.jsonl"
_KINDS: Final = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_HUB_PATTERNS: Final = ["*.json", "*.jsonl", "*.ndjson", "*.json.gz", "*.jsonl.gz", "*.ndjson.gz", "*.parquet"]
_HUB_ID: Final = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_NOT_DATA: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that the hub's own tools write alongside the data."""

_MAX_STEM_CHARS: Final = 160


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set.

    `label` names it in messages (relative to the data set), `stem` begins the ids of rows that have none, `kind` is
    json, jsonl or parquet as the name says, and `stamp` is size in bytes and mtime in ns when the set was opened.
    """

    path: Path
    label: str
    stem: str
    kind: str
    stamp: tuple[int, int]

    def check_unchanged(self) -> None:
        """See that nothing has changed since the opening, or row numbers of an earlier pass would mean other rows."""
        if _stamp(self.path) != self.stamp:
            raise DataError(f"{self.label}: changed since the data set was opened; start again")


class Found(NamedTuple):
    """The files a source stands for, in order, and the folder of ours they lie in, if it is one."""

    files: tuple[DataFile, ...]
    spool: TemporaryDirectory[str] | None = None


def find_files(source: str, *, stdin: BinaryIO | None, spool_dir: Path | None) -> Found:
    """The files a source stands for; a stream is copied to a new folder in `spool_dir` first."""
    try:
        return _find(source, stdin, spool_dir)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}") from error


def _find(source: str, stdin: BinaryIO | None, spool_dir: Path | None) -> Found:
    if source == "-":
        if stdin is None and sys.stdin is None:
            raise DataError("-: there is no standard input")
        return _copied(stdin or sys.stdin.buffer, spool_dir, "stdin")
    if not source:
        raise DataError("the name of the data set is empty")
    path = _DEMO if source == "demo" else Path(source)
    if path.is_dir():
        return Found(_in_folder(path, source))
    if path.is_file():
        return Found((_single(path, source),))
    if source != "demo" and path.exists():
        # A pipe, as in `<(zcat items.gz)`: it can be read once only.
        with path.open("rb") as stream:
            return _copied(stream, spool_dir, path.name)
    if _HUB_ID.fullmatch(source) and _kind(source) is None:
        return Found(_in_folder(_from_hub(source), source))
    raise DataError(f"{source}: no such file or folder")


def _copied(stream: BinaryIO, spool_dir: Path | None, label: str) -> Found:
    spool = TemporaryDirectory(prefix="libra-data-", dir=spool_dir)
    path = Path(spool.name, "stream")
    try:
        with path.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
    except BaseException:
        spool.cleanup()
        raise
    return Found((DataFile(path, label, label, "json", _stamp(path)),), spool)


def _single(path: Path, source: str) -> DataFile:
    kind = _kind(path.name)
    if kind is None:
        known = ", ".join(_KINDS)
        raise DataError(f"{source}: unknown kind of file; {known} are read, the JSON ones also with .gz behind")
    return DataFile(path, _printable(path.name), _id_stem(_without_suffix(path.name)), kind, _stamp(path))


def _in_folder(root: Path, source: str) -> tuple[DataFile, ...]:
    """The data files below a folder by their names; hidden ones and unknown kinds left out."""
    names: list[str] = []
    for folder, folders, found in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in found:
            path = Path(folder, name)
            # The hub's cache is made of links; a dangling one must be an error later, not silently less data.
            wanted = not name.startswith(".") and _kind(name) and name not in _NOT_DATA
            if wanted and (path.is_file() or path.is_symlink()):
                names.append(path.relative_to(root).as_posix())
    if not names:
        raise DataError(f"{source}: a folder without data; {', '.join(_KINDS)} are read, the JSON ones also with .gz")
    same_stem = Counter(_without_suffix(name) for name in names)
    files = []
    for name in sorted(names):
        stem = _without_suffix(name)
        path = root / name
        unique = _id_stem(stem if same_stem[stem] == 1 else name)
        files.append(DataFile(path, _printable(name), unique, _kind(name) or "json", _stamp(path)))
    return tuple(files)


def _from_hub(source: str) -> Path:
    """The folder that holds a hub data set's files, downloaded or from the cache."""
    missing = f"{source}: no such file or folder here"
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise DataError(f"{missing}; a data set of the hub needs: pip install 'libra-fleet[hub]'") from error
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub client's errors and its HTTP client's have no common base
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise DataError(f"{missing}, and the hub did not give it: {type(error).__name__}: {reason}") from error


def _kind(name: str) -> str | None:
    lowered = name.lower()
    zipped = lowered.endswith(".gz")
    kind = _KINDS.get(Path(lowered.removesuffix(".gz")).suffix)
    return None if zipped and kind == "parquet" else kind


def _without_suffix(name: str) -> str:
    path = Path(name)
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    return path.with_suffix("").as_posix()


def _id_stem(name: str) -> str:
    """A beginning of ids that leaves room for a number, and differs where long names differ."""
    name = _printable(name)
    if len(name) <= _MAX_STEM_CHARS:
        return name
    return f"{name[-_MAX_STEM_CHARS:]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def _printable(name: str) -> str:
    """A file name that is valid text; names on disk need not be."""
    return name.encode("utf-8", "replace").decode()


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _raise(error: OSError) -> None:
    raise error
