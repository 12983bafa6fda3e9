"""The rules of the house, as tests: who may import whom, and who may name a method."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import registry

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "stages", "methods", "models", "reports")
UNITS = {"pipeline/units", "pipeline/files"}
WORDS = {"pipeline/messages"}  # of error messages
TRAINS = UNITS | {"pipeline/selection", "pipeline/training", "pipeline/data"}
MEASURES = TRAINS - {"pipeline/training"} | {"pipeline/measure"}
STUDIES = TRAINS | MEASURES | WORDS | {"pipeline/registry", "pipeline/study"}
MAY_IMPORT = {
    "pipeline/files": set(),
    "pipeline/messages": set(),
    "pipeline/data": {"pipeline/data", "pipeline/files"},
    "pipeline/units": UNITS,
    "pipeline/selection": UNITS | {"pipeline/selection"},
    "pipeline/measure": MEASURES,
    "pipeline/training": TRAINS,
    "pipeline/registry": TRAINS | WORDS,
    "pipeline/study": STUDIES,
    "pipeline/runner": STUDIES | {"pipeline/runner"},
    "pipeline/cli": STUDIES | {"pipeline/cli", "pipeline/runner", "reports"},
    "pipeline/api": UNITS | MEASURES,
    "methods": TRAINS | {"pipeline/registry", "methods"},
    "models": {"pipeline/data", "pipeline/files", "pipeline/units", "pipeline/registry", "models"},
    "reports": STUDIES | {"reports"},
    "stages": STUDIES | {"reports", "methods", "models"},
}
MAX_LINES = 300
MAX_FILES = 18


def sources(room: str) -> Iterator[Path]:
    base = ROOT / room
    yield from base.rglob("*.py") if base.is_dir() else [base.with_suffix(".py")]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names
            if not all((ROOT / f"{n.replace('.', '/')}.py").is_file() for n in names):
                found.add(node.module)
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
    ("package", "home"),
    [("mlflow", "pipeline/study/tracking/store.py"), ("dvc", "pipeline/runner/dvc_project.py")],
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


def places(module: str) -> Iterator[Path]:
    """The files of ours that `import module` runs, packages without code left out."""
    path = ROOT / module.replace(".", "/")
    for found in (path.with_suffix(".py"), path / "__init__.py"):
        if found.is_file() and (found.name != "__init__.py" or imports(found)):
            yield found


def closure(path: Path) -> set[str]:
    """All files of ours that importing `path` imports, by name relative to the root."""
    seen: set[str] = set()
    todo = [path]
    while todo:
        for module in imports(todo.pop()):
            for found in places(module):
                if (name := str(found.relative_to(ROOT))) not in seen:
                    seen.add(name)
                    todo.append(found)
    return seen


# Imported to validate params.yaml as a whole, which decides nothing of these stages' results.
ONLY_VALIDATES = {
    "prepare-data": ("pipeline/training", "pipeline/units", "pipeline/selection"),
}


def test_what_a_stage_imports_is_among_its_dependencies() -> None:
    entries = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, entry in entries.items():
        if entry.get("always_changed"):
            continue
        deps = [str(d).removeprefix("${code}/") for d in entry.get("do", entry)["deps"]]
        for used in closure(ROOT / "stages" / f"{name.replace('-', '_')}.py"):
            if used.startswith(
                ("pipeline/study", "pipeline/registry", *WORDS, *ONLY_VALIDATES.get(name, ()))
            ):
                continue
            assert any(used == d or used.startswith(d + "/") for d in deps), f"{name} uses {used}"


@pytest.mark.parametrize("room", [*ROOMS, "tests", "benchmarks"])
def test_no_file_and_no_folder_outgrows_its_bound(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        lines = path.read_text().count("\n")
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it"
    for folder in {path.parent for path in (ROOT / room).rglob("*.py")}:
        files = len(list(folder.glob("*.py")))
        assert files <= MAX_FILES, f"{folder.relative_to(ROOT)} has {files} files: split it"


def test_no_import_circles() -> None:
    graph = {
        str(path.relative_to(ROOT)): {
            str(found.relative_to(ROOT)) for module in imports(path) for found in places(module)
        }
        for room in ROOMS
        for path in sources(room)
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle
