"""What a cache does, in memory: for tests of those who use one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Store:
    """A cache in memory."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def put(self, values: Mapping[bytes, bytes]) -> None:
        self.values.update(values)
