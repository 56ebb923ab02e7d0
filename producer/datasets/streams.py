"""A file's bytes as the readers take them: out of its archive, decompressed, in UTF-8. Knows no rows.

What compresses a file is told by its first bytes, whatever its name says. What is no UTF-8 is decoded by its byte
order mark, by the encoding that was named, or by a guess that is said (charset-normalizer).
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import IO, BinaryIO, Final, cast

from infra.errors import DataError, UsageError
from producer.datasets.sources import DataFile

BUFFER_BYTES: Final = 1 << 18
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_LONGEST_MAGIC: Final = 6
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8: Final = frozenset({"utf-8", "utf-8-sig", "ascii"})
_GUESSED: Final = ("gb18030", "big5", "big5hkscs", "shift_jis", "euc_jp", "euc_kr", "cp1252", "cp1251", "cp1256")
_FEWEST_BYTES: Final = 16
"""So many bytes beyond ASCII are needed for a guess; with fewer, each row that is no UTF-8 is named."""
_SAMPLE_BYTES: Final = 1 << 15


@contextmanager
def raw_bytes(file: DataFile) -> Iterator[BinaryIO]:
    """The file's bytes out of its archive, decompressed where they are compressed.

    Raises:
        DataError: an archive that cannot be opened, or a compression whose package is missing.
    """
    with ExitStack() as stack:
        raw: IO[bytes]
        if file.member is None:
            raw = stack.enter_context(file.path.open("rb", buffering=BUFFER_BYTES))
        else:
            raw = stack.enter_context(_member(stack.enter_context(_archive(file)), file))
        start = raw.read(_LONGEST_MAGIC)
        raw.seek(0)
        yield cast(BinaryIO, _decompressed(raw, start, file, stack))


def _archive(file: DataFile) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file.path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{file.label}: not readable as a zip archive: {error}") from error


def _member(archive: zipfile.ZipFile, file: DataFile) -> IO[bytes]:
    try:
        return archive.open(file.member or "")
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression of later years
        raise DataError(f"{file.label}: {error}; unpack the archive and name the file") from error


def _decompressed(raw: IO[bytes], start: bytes, file: DataFile, stack: ExitStack) -> IO[bytes]:
    if start.startswith(_GZIP):
        return io.BufferedReader(stack.enter_context(gzip.GzipFile(fileobj=raw)), BUFFER_BYTES)
    if start.startswith(_BZIP2):
        return io.BufferedReader(stack.enter_context(bz2.BZ2File(raw)), BUFFER_BYTES)
    if start.startswith(_XZ):
        return io.BufferedReader(stack.enter_context(lzma.LZMAFile(raw)), BUFFER_BYTES)
    if start.startswith(_ZSTD):
        try:
            import pyarrow  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise DataError(f"{file.label}: zstd needs pyarrow: pip install 'libra-fleet[parquet]'") from error
        unzipped = stack.enter_context(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"))
        return io.BufferedReader(unzipped, BUFFER_BYTES)
    return raw


@contextmanager
def utf8_bytes(file: DataFile, encoding: str | None) -> Iterator[BinaryIO]:
    """The file's text in UTF-8, without a byte order mark of UTF-16 or 32; bytes that are no text stay as they are.

    Raises:
        DataError: as `raw_bytes`; also where an encoding cannot be told.
        UsageError: `encoding` is not known.
    """
    name = encoding_of(file, encoding)
    with raw_bytes(file) as raw:
        if name in _UTF8:
            yield raw
        else:
            yield cast(BinaryIO, io.BufferedReader(_Recoded(raw, name), BUFFER_BYTES))


class _Recoded(io.RawIOBase):
    """Bytes of another encoding, in UTF-8. What cannot be decoded stays as it is, and so spoils its own row only."""

    def __init__(self, raw: BinaryIO, encoding: str) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            data = self._raw.read(BUFFER_BYTES)
            self._ended = not data
            self._ready = self._decoder.decode(data, final=self._ended).encode("utf-8", "surrogateescape")
        taken = self._ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)


def encoding_of(file: DataFile, named: str | None) -> str:
    """The encoding of a file's text: the one that was named, or the one that its bytes show."""
    if named is None:
        return _detected(file)
    try:
        return codecs.lookup(named).name
    except LookupError:
        raise UsageError(f"--encoding {named}: not known; for Chinese: utf-8, gb18030, big5, utf-16") from None


def guessed(file: DataFile, named: str | None) -> str | None:
    """The encoding that was guessed for a file, which a person should hear; None where nothing was guessed."""
    if named is not None:
        return None
    found = _detected(file)
    return None if found in _UTF8 or found.startswith(("utf-16", "utf-32")) else found


@lru_cache(maxsize=4096)
def _detected(file: DataFile) -> str:
    head = b""
    try:
        with raw_bytes(file) as raw:
            head = raw.read(BUFFER_BYTES)
            while head.isascii() and b"\x00" not in head and (more := raw.read(BUFFER_BYTES)):
                head = more  # the first text beyond ASCII decides, wherever it is
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
        pass  # whoever reads the rows meets it too, and can say after which row
    return detect(head, file.label)


def detect(head: bytes, label: str) -> str:
    """The encoding that a part of a file shows; a guess where it is neither UTF-8, 16 nor 32.

    Raises:
        DataError: it is no text in any known encoding.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if head.startswith((b"PAR1", b"PK\x03\x04", b"ARROW1", b"\xff\xff\xff\xff")):
        return "utf-8"  # no text; its own reader says what is wrong with it
    even, odd = head[0:2048:2].count(0), head[1:2048:2].count(0)
    if even + odd > len(head[:2048]) // 8:
        return "utf-16-be" if even > odd else "utf-16-le"
    if _is_utf8(head):
        return "utf-8"
    lines = [line for line in head.splitlines(keepends=True) if not line.isascii()]
    sample = b"".join(lines[:-1] or lines)[:_SAMPLE_BYTES]  # the last line may be cut in a character
    if sum(byte > 0x7F for byte in sample) < _FEWEST_BYTES:
        return "utf-8"
    guess = _guess(sample)
    if guess is None:
        raise DataError(f"{label}: not UTF-8, and its encoding cannot be told; name it: --encoding gb18030, big5, …")
    return guess


def _is_utf8(head: bytes) -> bool:
    """True where most of what is not ASCII is UTF-8: a few bad bytes spoil their rows, not the file's encoding."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    bad = text.count("\ufffd") - head.count("\ufffd".encode())
    good = sum(1 for character in text if character > "\x7f") - text.count("\ufffd")
    return bad * 4 <= good


def _guess(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes  # noqa: PLC0415 - only where a file is not UTF-8

    best = from_bytes(sample, cp_isolation=list(_GUESSED), threshold=0.4).best()
    return codecs.lookup(best.encoding).name if best else None
