"""The house: one idea, one file, and few enough of them to hold in the head."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "ecgfeat"
FILES = sorted(LIBRARY.rglob("*.py"))
ROOMS = [path for path in FILES if path.name != "__init__.py"]


def test_there_are_few_files_and_they_hold_whole_ideas() -> None:
    assert len(FILES) <= 85
    assert statistics.median(len(path.read_text().splitlines()) for path in FILES) >= 200


def test_no_file_name_occurs_twice() -> None:
    twice = [name for name, n in Counter(path.name for path in ROOMS).items() if n > 1]
    assert twice == []


def test_a_package_only_exports() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr, ast.If, ast.FunctionDef)
    for path in LIBRARY.rglob("__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert kinds <= set(allowed), path


def test_the_library_does_not_print() -> None:
    for path in FILES:
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        assert "print" not in names, path
