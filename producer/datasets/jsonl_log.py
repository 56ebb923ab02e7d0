"""A file of JSON lines that grows row by row and survives being cut off anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from infra.errors import DataError


class OutFile:
    """Rows with an `id`, one a line. Opening it cuts off a last line that was torn."""

    def __init__(self, path: Path, *, on_row: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        """Open or create the file; DataError where a line before its last one is no row.

        `on_row` is called with each row that is there already.
        """
        self.path = path
        self.torn_bytes = 0
        self.ids: set[str] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            with path.open("rb") as file:
                lines = enumerate(file, start=1)
                for number, line in lines:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        row = None
                    if isinstance(row, dict) and row.get("id") is not None and line.endswith(b"\n"):
                        self.ids.add(str(row["id"]))
                        on_row(row)
                        continue
                    if next(lines, None) is not None:
                        raise DataError(f"{path}:{number}: not a row of ours; move the file away, or repair the line")
                    self.torn_bytes = len(line)
            if self.torn_bytes:
                os.truncate(path, path.stat().st_size - self.torn_bytes)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows; when this returns they are on disk."""
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
