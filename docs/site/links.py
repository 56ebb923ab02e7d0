"""Links of a page, rewritten for its place on the site. Pure: knows the repository's paths, reads no file."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Final

_FENCE: Final = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE: Final = r"(`+)(?!`).+?(?<!`)\1(?!`)"
_LINK: Final = r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)"
_CODE_OR_LINK: Final = re.compile(f"{_CODE}|{_LINK}", re.DOTALL)
_ELSEWHERE: Final = re.compile(r"^([a-z][a-z0-9+.-]*:|#|/)", re.IGNORECASE)


def rewrite(text: str, source: str, published: Mapping[str, str], exists: Callable[[str], bool]) -> str:
    """A page's text with its links as they must be on the site.

    A link to what is published leads to its place; one to another file of the repository becomes its text, because the
    site has no such page; one to nothing stays, so that the strict build names it.

    Args:
        text: Markdown.
        source: the page's path in the repository.
        published: paths in the repository to paths on the site; a folder's README stands for the folder as well.
        exists: whether the repository has a path.
    """
    folder, place = posixpath.dirname(source), posixpath.dirname(published[source])

    def link(match: re.Match[str]) -> str:
        image, shown, target = match[2], match[3], match[4]
        if target is None or _ELSEWHERE.match(target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        wanted = posixpath.normpath(posixpath.join(folder, path))
        found = published.get(wanted) or published.get(f"{wanted}/README.md")
        if found:
            return f"{image}[{shown}]({posixpath.relpath(found, place or '.')}{hash_}{anchor})"
        return shown if exists(wanted) else match[0]

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_CODE_OR_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _CODE_OR_LINK.sub(link, text[end:])])
