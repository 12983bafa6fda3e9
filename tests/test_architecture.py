"""The rules of the house, as tests: who may import whom, and who may name a method."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.study import registry

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "stages", "methods", "models", "reports")
MAY_IMPORT = {
    "pipeline/units": {"pipeline/units", "pipeline/files"},
    "pipeline/data": {"pipeline/data", "pipeline/files"},
    "pipeline/training": {"pipeline/training", "pipeline/units", "pipeline/data", "pipeline/files"},
    "pipeline/study": {
        "pipeline/study",
        "pipeline/training",
        "pipeline/units",
        "pipeline/data",
        "pipeline/files",
    },
    "pipeline/files": set(),
    "methods": {"pipeline"},
    "models": {"pipeline", "models"},
    "reports": {"pipeline", "reports"},
    "stages": {"pipeline", "reports", "methods", "models"},
}


def sources(room: str) -> Iterator[Path]:
    base = ROOT / room
    yield from base.rglob("*.py") if base.is_dir() else [base.with_suffix(".py")]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    allowed = MAY_IMPORT[room]
    for path in sources(room):
        for module in imports(path):
            if module.split(".")[0] not in ROOMS:
                continue
            target = module.replace(".", "/")
            assert any(target == a or target.startswith(a + "/") for a in allowed) or any(
                a.startswith(target + "/") for a in allowed
            ), f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize(
    ("package", "home"), [("mlflow", "pipeline/study/tracking.py"), ("dvc", "")]
)
def test_outside_libraries_have_one_door(package: str, home: str) -> None:
    for room in ROOMS:
        for path in sources(room):
            if any(m.split(".")[0] == package for m in imports(path)):
                assert str(path.relative_to(ROOT)) == home


def test_nobody_outside_methods_names_a_method() -> None:
    names = [n for n in registry.method_names() if n != "dense"]
    words = re.compile(rf"""["'](?:{"|".join(names)})["']""")
    for room in ("pipeline", "stages", "models", "reports"):
        for path in sources(room):
            found = words.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)} names {found}"


def test_a_stage_is_a_file_is_an_entry_of_dvc_yaml() -> None:
    entries = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    files = {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in entries} == files
    for name, entry in entries.items():
        command = entry.get("do", entry)["cmd"]
        assert command.startswith(f"python -m stages.{name.replace('-', '_')}")


def closure(path: Path) -> set[str]:
    """All files of ours that importing `path` imports, by name relative to the root."""
    seen: set[str] = set()
    todo = [path]
    while todo:
        for module in imports(todo.pop()):
            found = ROOT / (module.replace(".", "/") + ".py")
            if found.is_file() and (name := str(found.relative_to(ROOT))) not in seen:
                seen.add(name)
                todo.append(found)
    return seen


# Imported to validate params.yaml as a whole, which decides nothing of these stages' results.
ONLY_VALIDATES = {
    "prepare-data": ("pipeline/training", "pipeline/units"),
}


def test_what_a_stage_imports_is_among_its_dependencies() -> None:
    entries = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, entry in entries.items():
        if name == "report":
            continue  # always looks
        deps = [str(d).removeprefix("${root}/") for d in entry.get("do", entry)["deps"]]
        for used in closure(ROOT / "stages" / f"{name.replace('-', '_')}.py"):
            if used.startswith(("pipeline/study", *ONLY_VALIDATES.get(name, ()))):
                continue
            assert any(used == d or used.startswith(d + "/") for d in deps), f"{name} uses {used}"


@pytest.mark.parametrize("room", ROOMS)
def test_files_stay_readable(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        lines = path.read_text().count("\n")
        assert lines <= 350, f"{path.relative_to(ROOT)} has {lines} lines: one room or several?"
