"""Read params.yaml, validate it as a whole before any work, and return frozen typed objects."""

from __future__ import annotations

from pathlib import Path

from pipeline.study.params.checks import check_names, check_references
from pipeline.study.params.errors import ParamsError, validated
from pipeline.study.params.pipeline_reads import check_pipeline_reads
from pipeline.study.params.reading import read_values
from pipeline.study.params.schema import File
from pipeline.study.params.study import Params, merge

__all__ = ["Params", "ParamsError", "load_params", "merge"]


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and validate a params file.

    Raises:
        ParamsError: the file is invalid; says why in one line.
    """
    path = Path(path)
    raw = read_values(path)
    file: File = validated(path, "", File, raw)
    check_names(path, file)
    check_pipeline_reads(path, raw)
    params = Params(file, path)
    check_references(params)
    return params
