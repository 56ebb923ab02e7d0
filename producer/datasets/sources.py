"""The files that the user's words stand for: a file, an archive, a folder, stdin, a set of the hub, or `demo`.

Knows names, not contents: which kind a name says, which split it belongs to.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final, NamedTuple

from infra.errors import DataError

_DEMO: Final = Path(__file__).parents[1] / "data" / "demo.jsonl"
_KINDS: Final = {
    **{".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".xlsx": "xlsx"},
    **{".parquet": "parquet", ".arrow": "arrow"},
}
_ARCHIVE: Final = ".zip"
_COMPRESSED: Final = (".gz", ".zst", ".bz2", ".xz")
KNOWN: Final = f"{', '.join(_KINDS)} are read, also with {', '.join(_COMPRESSED)} behind, or in a {_ARCHIVE}"
_HUB_PATTERNS: Final = [
    *(f"*{kind}" for kind in (*_KINDS, _ARCHIVE)),
    *(f"*{kind}{end}" for kind in (".json", ".jsonl", ".ndjson", ".csv", ".tsv") for end in _COMPRESSED),
]
_HUB_ID: Final = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_NOT_DATA: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that the hub's own tools write alongside the data."""
_SPLITS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in the names of files and folders that say which part of a set they hold, as the hub reads them."""
_WITH_PARTS: Final = ("xlsx", "json", "stream")
"""Kinds of files that may hold several splits: sheets, or lists under names."""
_SHARD: Final = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")

_MAX_STEM_CHARS: Final = 160


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a data set.

    `label` names it in messages (relative to the data set), `stem` begins the ids of rows that have none, `kind` is
    what the name says (`stream` where there is no name), `stamp` is size in bytes and mtime in ns when the set was
    opened, and `member` is its name in the zip archive that `path` is then.
    """

    path: Path
    label: str
    stem: str
    kind: str
    stamp: tuple[int, int]
    member: str | None = None

    def check_unchanged(self) -> None:
        """See that nothing has changed since the opening, or row numbers of an earlier pass would mean other rows."""
        if _stamp(self.path) != self.stamp:
            raise DataError(f"{self.label}: changed since the data set was opened; start again")


class Found(NamedTuple):
    """The files a source stands for, in order, and the folder of ours they lie in, if it is one."""

    files: tuple[DataFile, ...]
    spool: TemporaryDirectory[str] | None = None


def find_files(source: str, *, stdin: BinaryIO | None, spool_dir: Path | None, split: str | None = None) -> Found:
    """The files a source stands for; a stream is copied to a new folder in `spool_dir` first.

    Raises:
        DataError: no such source, no data in it, or several of train, validation and test and none of them chosen.
    """
    try:
        found = _find(source, stdin, spool_dir)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}") from error
    try:
        return found._replace(files=_of_split(found.files, source, split))
    except BaseException:
        if found.spool:
            found.spool.cleanup()
        raise


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
        return Found(_single(path, source))
    if source != "demo" and path.exists():
        # A pipe, as in `<(zcat items.gz)`: it can be read once only.
        with path.open("rb") as stream:
            return _copied(stream, spool_dir, path.name)
    if _HUB_ID.fullmatch(source) and kind_of_name(source) is None:
        return Found(_in_folder(_from_hub(source), source))
    raise DataError(f"{source}: no such file or folder")


def _copied(stream: BinaryIO, spool_dir: Path | None, label: str) -> Found:
    spool = TemporaryDirectory(prefix="libra-data-", dir=spool_dir)
    path = Path(spool.name, "stream")
    try:
        with path.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        if zipfile.is_zipfile(path) and not _is_workbook(path):
            return Found(_in_archive(path, label, label), spool)
    except BaseException:
        spool.cleanup()
        raise
    kind = "xlsx" if zipfile.is_zipfile(path) else "stream"
    return Found((DataFile(path, label, label, kind, _stamp(path)),), spool)


def _single(path: Path, source: str) -> tuple[DataFile, ...]:
    kind = kind_of_name(path.name)
    if kind is None:
        old_excel = "; save it as .xlsx" if path.suffix.lower() == ".xls" else ""
        raise DataError(f"{source}: unknown kind of file; {KNOWN}{old_excel}")
    if kind == _ARCHIVE:
        return _in_archive(path, _printable(path.name), _without_suffix(path.name))
    return (DataFile(path, _printable(path.name), _id_stem(_without_suffix(path.name)), kind, _stamp(path)),)


def _in_folder(root: Path, source: str) -> tuple[DataFile, ...]:
    """The data files below a folder by their names; hidden ones and unknown kinds left out."""
    names: list[str] = []
    for folder, folders, found in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in found:
            path = Path(folder, name)
            # The hub's cache is made of links; a dangling one must be an error later, not silently less data.
            if _is_data(name) and (path.is_file() or path.is_symlink()):
                names.append(path.relative_to(root).as_posix())
    if not names:
        raise DataError(f"{source}: a folder without data; {KNOWN}")
    files: list[DataFile] = []
    for name, stem in _stems(names):
        path = root / name
        if kind_of_name(name) == _ARCHIVE:
            files += _in_archive(path, _printable(name), stem)
        else:
            files.append(DataFile(path, _printable(name), _id_stem(stem), kind_of_name(name) or "json", _stamp(path)))
    return tuple(files)


def _in_archive(path: Path, label: str, stem: str) -> tuple[DataFile, ...]:
    """The data files of a zip archive; the only file of one is read whatever its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except zipfile.BadZipFile as error:
        raise DataError(f"{label}: not readable as a zip archive: {error}") from error
    visible = [name for name in entries if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)]
    names = [name for name in visible if _is_data(Path(name).name) and kind_of_name(name) != _ARCHIVE]
    if not names and len(visible) == 1 and Path(visible[0]).suffix.lower() not in (_ARCHIVE, ".xls"):
        names = visible
    if not names:
        raise DataError(f"{label}: an archive without data; {KNOWN}")
    stamp = _stamp(path)
    return tuple(
        DataFile(
            *(path, f"{label}/{_printable(name)}", _id_stem(stem if len(names) == 1 else f"{stem}/{inner}")),
            kind=kind_of_name(name) or "stream",
            stamp=stamp,
            member=name,
        )
        for name, inner in _stems(names)
    )


def _is_data(name: str) -> bool:
    return not name.startswith(".") and kind_of_name(name) is not None and name not in _NOT_DATA


def _stems(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The names in order, each with the shortest stem that no other one has."""
    same_stem = Counter(_without_suffix(name) for name in names)
    for name in sorted(names):
        stem = _without_suffix(name)
        yield name, stem if same_stem[stem] == 1 else name


def _of_split(files: tuple[DataFile, ...], source: str, wanted: str | None) -> tuple[DataFile, ...]:
    """The files of a split. Several of train, validation and test are never one set without a word.

    A single file holds its splits inside, if it has any (the sheets of a workbook): its reader chooses.
    """
    if wanted is None:
        names = {name for file in files for name in _split_names(file.label)}
        named = sorted({_SPLITS[name] for name in names & _SPLITS.keys()})
        if len(named) > 1:
            raise DataError(f"{source}: holds {', '.join(named)}; choose with --split {named[0]}, or name the file")
        return files
    chosen = tuple(file for file in files if is_of_split(file, wanted))
    if chosen or (len(files) == 1 and files[0].kind in _WITH_PARTS):
        return chosen or files
    there = sorted({_SPLITS.get(name, name) for file in files for name in _split_names(file.label)})
    raise DataError(f"{source}: no split {wanted}; found {', '.join(there) or 'none'}")


def is_of_split(file: DataFile, wanted: str) -> bool:
    """True if a file's name, or its folder's, says that it holds this split."""
    names = _split_names(file.label)
    asked = wanted.lower()
    return asked in names or _SPLITS.get(asked, asked) in {_SPLITS.get(name, name) for name in names}


def _split_names(label: str) -> list[str]:
    """The splits that a file's name or, where that says nothing, its folders may mean; the innermost decides."""
    for part in reversed(Path(label).parts):
        stem = _without_suffix(part).lower()
        shard = _SHARD.fullmatch(stem)
        if shard and shard["split"] != "data":
            stem = shard["split"]
        words = [word for word in re.split(r"[\W_\d]+", stem) if word in _SPLITS]
        if words:
            return [stem, words[-1]]
        if shard and stem == shard["split"]:
            return [stem]
    return [_without_suffix(part).lower() for part in Path(label).parts]


def _is_workbook(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return "xl/workbook.xml" in archive.namelist()


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


def kind_of_name(name: str) -> str | None:
    """The kind of file that a name says; `.zip` for an archive, None where it says none."""
    path = Path(name.lower())
    if path.suffix == _ARCHIVE:
        return _ARCHIVE
    packed = path.suffix in _COMPRESSED
    kind = _KINDS.get(path.with_suffix("").suffix if packed else path.suffix)
    return None if packed and kind in ("parquet", "arrow", "xlsx") else kind


def _without_suffix(name: str) -> str:
    path = Path(name)
    if path.suffix.lower() in (*_COMPRESSED, _ARCHIVE):
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
