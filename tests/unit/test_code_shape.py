"""What no linter of ours checks: short functions everywhere, and a docstring on every module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path for package in ("schemas", "infra", "producer", "worker") for path in (ROOT / package).rglob("*.py")
)
LONGEST_FUNCTION_LINES = 60


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line; decorators are options, not code."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_a_docstring_and_no_long_function(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    too_long = {f.name: _lines(f) for f in _functions(tree) if _lines(f) > LONGEST_FUNCTION_LINES}
    assert ast.get_docstring(tree), "a module says in its docstring what it is for"
    assert not too_long, f"functions of more than {LONGEST_FUNCTION_LINES} lines"
