"""The digest of code depends on what the code does, not on comments or docstrings."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.study.execution.code import code_sha256

BASE = '''"""Doc."""
# a comment
def f(x: int = 1) -> int:
    """What it does."""
    return x + 1
'''


def digest(folder: Path, text: str) -> str:
    path = folder / "c.py"
    path.write_text(text)
    return code_sha256(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment\n", ""),
        ('"""What it does."""', '"""Other words."""'),
        ('    """What it does."""\n', ""),
        ('"""Doc."""', '"""Another."""'),
        ("return x + 1", "return (x +  1)  # why"),
    ],
)
def test_words_and_layout_do_not_count(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path, BASE.replace(old, new)) == digest(tmp_path, BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("x + 1", "x - 1"),
        ("x + 1", "x + True"),
        ("def f", "def g"),
        ("int = 1", "int = None"),
        ("x + 1", "'x + 1'"),
        ("return x", "return y"),
    ],
)
def test_code_counts(tmp_path: Path, old: str, new: str) -> None:
    assert digest(tmp_path, BASE.replace(old, new)) != digest(tmp_path, BASE)


def test_what_is_not_python_is_known_by_its_bytes(tmp_path: Path) -> None:
    assert digest(tmp_path, "f(") != digest(tmp_path, "f( ")
