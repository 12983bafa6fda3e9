"""Read params.yaml, validate it as a whole before any work, and return frozen typed objects."""

from __future__ import annotations

from pathlib import Path

from pipeline.study.params.checks import check_names, check_references
from pipeline.study.params.errors import ParamsError, validated
from pipeline.study.params.pipeline_reads import check_pipeline_reads
from pipeline.study.params.reading import read_values
from pipeline.study.params.schema import File
from pipeline.study.params.study import Params, merge

__all__ = ["Params", "ParamsError", "load_params", "load_parts", "merge"]


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and validate a params file.

    Raises:
        ParamsError: the file is invalid; says why in one line.
    """
    params = _load(Path(path))
    load_parts(params)
    return params


def _load(path: Path) -> Params:
    """Without its parts."""
    raw = read_values(path)
    file: File = validated(path, "", File, raw)
    check_names(path, file)
    check_pipeline_reads(path, raw)
    params = Params(file, path)
    check_references(params)
    return params


def load_parts(params: Params) -> dict[Path, Params]:
    """The folders of a study, relative to that of its params.yaml: `.` and its parts.

    Raises:
        ParamsError: a part is missing, listed twice or invalid, belongs to another study or to
            other data, has parts itself, or has a name that another one has.
    """
    found = {Path(): params}
    for name in params.file.parts:
        if Path(name) in found:
            raise ParamsError(f"{params.path}: parts: {name!r} is there twice; list it once")
        found[Path(name)] = _load_part(params, params.path.with_name(name) / params.path.name)
    taken: dict[tuple[str, str], Path] = {}
    for part in found.values():
        for entry in _entries(part.file):
            if entry in taken:
                block, key = entry
                raise ParamsError(
                    f"{part.path}: {block}.{key}: {taken[entry]} has one of this name too; rename "
                    "one of them"
                )
            taken[entry] = part.path
    return found


def _load_part(params: Params, path: Path) -> Params:
    if not path.is_file():
        raise ParamsError(f"{params.path}: parts: {path} is missing; a part is a folder with one")
    part = _load(path)
    if part.file.parts:
        raise ParamsError(f"{path}: parts: a part has none; list them all in {params.path}")
    if part.file.study != params.file.study:
        raise ParamsError(
            f"{path}: study: {part.file.study!r}, and it is a part of {params.path}, which is "
            f"{params.file.study!r}"
        )
    if _data(part) != _data(params):
        raise ParamsError(f"{path}: data: not that of {params.path}, of which it is a part")
    return part


def _data(params: Params) -> dict[str, object]:
    """The `data` block. Each folder has its own relative path to the raw files."""
    return params.file.data.model_dump(exclude={"root"})


def _entries(file: File) -> list[tuple[str, str]]:
    blocks = {
        "trainings": file.trainings,
        "prunings": file.prunings,
        "sweep.trainings": file.sweep.trainings,
        "connect.pairs": file.connect.pairs,
    }
    return [(block, key) for block, keys in blocks.items() for key in keys]
