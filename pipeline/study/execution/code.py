"""Digest of a code file that does not depend on comments, docstrings and layout."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_sha256(path: Path) -> str:
    """SHA-256 of the syntax tree without docstrings; of the bytes if it is not Python.

    Empty fields are skipped, so that Python versions with additional fields give the same digest.
    """
    return source_sha256(path.read_bytes())


def source_sha256(source: bytes) -> str:
    """`code_sha256` of a file's content."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    return hashlib.sha256(_written(tree).encode("utf-8", "surrogatepass")).hexdigest()


def _written(node: Any) -> str:
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    told = [f"{k}={_written(v)}" for k, v in fields.items() if v is not None and v != []]
    return f"{type(node).__name__}({','.join(told)})"
