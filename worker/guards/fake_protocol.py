"""Directives from the fake guard to the fake engine: the first id of a prompt is one.

Ids below 256 are the bytes of the text; a directive lies above them, so that no text can spell one.
"""

from typing import Final

DIRECTIVES: Final = {"safe": 256, "unsafe": 257, "unparseable": 258, "crash": 259, "hang": 260, "oom": 261}
