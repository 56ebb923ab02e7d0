"""A policy from a YAML file. What is wrong with it is said by file, line and field. Knows no ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from infra.errors import DataError, UsageError
from schemas.policy import Policy

EXAMPLES: Final = Path(__file__).parent / "examples"
"""Policies that are shipped: a name stands for the file here, where no such file is elsewhere."""

_MAX_BYTES: Final = 256 * 1024
_SHOWN: Final = 5

_Lines = dict[tuple[str | int, ...], int]


def read_policy(source: str) -> Policy:
    """The policy in a YAML file, or a shipped example by its name.

    Raises:
        UsageError: there is no such file.
        DataError: it is no policy; each problem is named by file, line and field.
    """
    path = Path(source)
    if not path.exists() and (EXAMPLES / f"{source}.yaml").is_file():
        path = EXAMPLES / f"{source}.yaml"
    try:
        content = path.read_bytes()
    except OSError as error:
        shipped = ", ".join(sorted(example.stem for example in EXAMPLES.glob("*.yaml")))
        raise UsageError(f"{source}: {error.strerror} (shipped: {shipped})") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{source}: {len(content):,} bytes; the limit is {_MAX_BYTES:,}")
    return parse_policy(content, str(path))


def parse_policy(content: bytes, name: str) -> Policy:
    """As `read_policy`, from a YAML text; `name` is what errors call it."""
    lines: _Lines = {}
    try:
        text = content.decode()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise DataError(f"{name}: aliases (*name) are not supported: write the rule out")
        root = yaml.compose(text, yaml.SafeLoader)
        body = None if root is None else _plain(root, name, (), lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 (byte {error.start + 1})") from error
    except RecursionError as error:
        raise DataError(f"{name}: nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{name}:{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{name}: {error}") from error
    if not isinstance(body, dict):
        raise DataError(f"{name}:1: expected `policy:`, `version:` and `thresholds:`")
    try:
        return Policy.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise DataError("\n".join(_problems(error, name, lines))) from error


def _plain(node: yaml.Node, name: str, place: tuple[str | int, ...], lines: _Lines) -> object:
    """The content of a node; the line of everything in it goes to `lines`, by its place."""
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        found: dict[str, object] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise DataError(f"{name}:{line}: a field's name is expected")
            if key.value in found:
                raise DataError(f"{name}:{line}: {key.value} stands here twice")
            found[key.value] = _plain(value, name, (*place, key.value), lines)
            lines[*place, key.value] = line
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, name, (*place, at), lines) for at, child in enumerate(node.value)]
    return _scalar(node, name)


def _scalar(node: yaml.Node, name: str) -> object:
    kind = node.tag.rpartition(":")[2]
    try:
        if kind == "int":
            return int(node.value, 0)
        if kind == "float":
            return float(node.value)
    except ValueError as error:
        line = node.start_mark.line + 1
        raise DataError(f"{name}:{line}: {node.value!r} is no number in a form that is read here") from error
    if kind == "null":
        return None
    return node.value.lower() in ("true", "yes", "on") if kind == "bool" else node.value


def _problems(error: ValidationError, name: str, lines: _Lines) -> Iterator[str]:
    details = error.errors(include_url=False, include_input=False)
    for detail in details[:_SHOWN]:
        place = tuple(detail["loc"])
        known = next(place[:end] for end in range(len(place), -1, -1) if place[:end] in lines)
        field = ".".join(map(str, place)) or "policy"
        unknown = detail["type"] == "extra_forbidden"
        said = "there is no such field" if unknown else detail["msg"].removeprefix("Value error, ")
        yield f"{name}:{lines[known]}: {field}: {said}"
    if len(details) > _SHOWN:
        yield f"{name}: and {len(details) - _SHOWN} more"
