"""Compare dvc.lock with the files, without DVC: which stages are stale, and why.

The hashes are DVC's: MD5 of a file's bytes or, for a folder, MD5 of the JSON list of its files with
their hashes, by name. `tests/test_smoke.py` compares them with DVC's on a finished study.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.files import replacing
from pipeline.study.params.errors import ParamsError
from pipeline.study.params.reading import read_values

_ROOT = "${code}/"


@dataclass(frozen=True)
class Stale:
    """Why one stage is stale. `code` can be accepted if a rerun gives the same records; `other`
    (params, data, outputs) cannot."""

    stage: str
    code: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.stage}: {', '.join((*self.other, *self.code))}"


@dataclass(frozen=True)
class Asked:
    """One stage of dvc.yaml with its variables resolved; `code` are the paths below `code`."""

    cmd: str
    params: tuple[str, ...]
    code: tuple[str, ...]
    data: tuple[str, ...]
    outs: tuple[str, ...]


@dataclass(frozen=True)
class Project:
    """A folder with dvc.yaml, params.yaml and dvc.lock."""

    folder: Path
    _hashes: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def lock(self) -> Any:
        """dvc.lock, ready to be written back."""
        return YAML(typ="rt").load(self.folder / "dvc.lock")

    @cached_property
    def params(self) -> dict[str, Any]:
        """params.yaml over the `vars` of dvc.yaml."""
        defaults = {k: v for block in self._pipeline.get("vars", ()) for k, v in block.items()}
        return defaults | read_values(self.folder / "params.yaml")

    @cached_property
    def _pipeline(self) -> dict[str, Any]:
        return read_values(self.folder / "dvc.yaml")

    @cached_property
    def asked(self) -> dict[str, Asked]:
        """The stages of dvc.yaml and params.yaml, except those that always run."""
        return {
            name: _resolved(self.folder / "params.yaml", entry, self.params | more)
            for name, entry, more in self._entries()
            if not entry.get("always_changed")
        }

    def _entries(self) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
        for name, entry in self._pipeline["stages"].items():
            if "foreach" not in entry:
                yield name, entry, {}
                continue
            over = _required(
                self.folder / "params.yaml", self.params, entry["foreach"].strip("${}")
            )
            pairs = over.items() if isinstance(over, Mapping) else ((i, i) for i in over)
            for key, item in pairs:
                yield f"{name}@{key}", entry["do"], {"key": key, "item": item}

    def stale(self) -> list[Stale]:
        """The stages that were run and would run again. Stages that never ran are not included."""
        done = self.lock["stages"]
        made = {out["path"]: out["md5"] for s in done.values() for out in s.get("outs", ())}
        found = []
        for name, asked in self.asked.items():
            if name in done:
                code = tuple(self._code(asked, done[name]))
                other = tuple(self._other(asked, done[name], made))
                if code or other:
                    found.append(Stale(name, code, other))
        return found

    def _code(self, asked: Asked, done: Any) -> Iterator[str]:
        known = _by_path(done, "deps")
        if asked.cmd != done["cmd"]:
            yield "cmd"
        for path in asked.code:
            if known.get(path) != self.hash_of(path)["md5"]:
                yield path
        yield from (path for path in known if path not in (*asked.code, *asked.data))

    def _other(self, asked: Asked, done: Any, made: Mapping[str, str]) -> Iterator[str]:
        said = done.get("params", {}).get("params.yaml", {})
        for key in asked.params:
            if key not in said or said[key] != _at(self.params, key):
                yield f"params.yaml: {key}"
        known, outs = _by_path(done, "deps"), _by_path(done, "outs")
        for path in asked.data:
            if path not in known or known[path] != made.get(path, known[path]):
                yield path
        for path in asked.outs:
            differs = path.endswith(".json") and outs.get(path) != self.hash_of(path)["md5"]
            if path not in outs or differs:
                yield path

    def accept(self) -> None:
        """Write the current commands and code hashes into dvc.lock."""
        for name, asked in self.asked.items():
            done = self.lock["stages"].get(name)
            if done is None:
                continue
            done["cmd"] = asked.cmd
            data = [dep for dep in done["deps"] if dep["path"] in asked.data]
            code = [{"path": path, "hash": "md5", **self.hash_of(path)} for path in asked.code]
            done["deps"] = sorted([*data, *code], key=lambda dep: str(dep["path"]))
        yaml = YAML(typ="rt")
        yaml.default_flow_style = False
        with replacing(self.folder / "dvc.lock") as temporary:
            yaml.dump(self.lock, temporary)

    def hash_of(self, path: str) -> dict[str, Any]:
        """`md5`, `size` and, for a folder, `nfiles`, as in dvc.lock. A missing path has md5 ""."""
        if path not in self._hashes:
            self._hashes[path] = _hash(self.folder / path, self._ignored)
        return self._hashes[path]

    @cached_property
    def _ignored(self) -> tuple[str, ...]:
        path = self.folder / ".dvcignore"
        return tuple(path.read_text(encoding="utf-8").split()) if path.is_file() else ()


def _hash(path: Path, ignored: tuple[str, ...]) -> dict[str, Any]:
    if path.is_file():
        return {"md5": _md5(path), "size": path.stat().st_size}
    files = []
    for file in path.rglob("*"):
        name = file.relative_to(path)
        skip = any(fnmatchcase(part, pattern) for part in name.parts for pattern in ignored)
        if file.is_file() and not skip:
            files.append((name.as_posix(), file))
    if not files:
        return {"md5": ""}
    rows = [{"md5": _md5(file), "relpath": name} for name, file in sorted(files)]
    digest = hashlib.md5(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    size = sum(file.stat().st_size for _, file in files)
    return {"md5": f"{digest}.dir", "size": size, "nfiles": len(files)}


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _resolved(path: Path, entry: Mapping[str, Any], names: Mapping[str, Any]) -> Asked:
    def filled(text: str) -> str:
        return re.sub(r"\$\{([^}]+)\}", lambda m: str(_required(path, names, m.group(1))), text)

    deps = entry.get("deps", ())
    outs = [o for kind in ("outs", "metrics") for o in entry.get(kind, ())]
    return Asked(
        filled(entry["cmd"]),
        tuple(filled(key) for key in entry.get("params", ())),
        tuple(filled(dep) for dep in deps if dep.startswith(_ROOT)),
        tuple(filled(dep) for dep in deps if not dep.startswith(_ROOT)),
        tuple(filled(next(iter(o)) if isinstance(o, Mapping) else o) for o in outs),
    )


def _by_path(done: Any, kind: str) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in done.get(kind, ())}


def _required(path: Path, values: Mapping[str, Any], key: str) -> Any:
    if (found := _at(values, key)) is None:
        where = f"{values['key']}: {key}" if "key" in values else key
        raise ParamsError(f"{path}: {where}: missing, and dvc.yaml reads it")
    return found


def _at(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
