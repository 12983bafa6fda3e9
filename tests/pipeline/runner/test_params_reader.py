"""What DVC reads of params.yaml, without parsing it for every stage."""

from __future__ import annotations

import pytest
from dvc.dependency.param import read_param_file
from dvc.fs import LocalFileSystem

from pipeline.runner.dvc_project import ParamReader

FILE = (
    "train: {epochs: 2, lr: 0.1}\ntrainings:\n  a: {seed: 0}\n  b: {seed: 1, milestones: [1, 2]}\n"
)
KEYS = [["train"], ["trainings.a", "train.lr"], ["trainings.b"], ["absent"], ["train", "absent.x"],
        ["trainings.b.milestones.1"], ["trainings.*.seed"], None]  # fmt: skip


@pytest.fixture
def parsed():
    """DVC's reader, with a list of its calls."""
    calls = []

    def read(*arguments, **more):
        calls.append(arguments)
        return original(*arguments, **more)

    original = getattr(read_param_file, "_read", read_param_file)
    return original, ParamReader(read), calls


def answer(read, path, keys):
    try:
        return read(LocalFileSystem(), str(path), keys, True)
    except ValueError as error:  # dpath: a pattern with several matches
        return str(error)


def test_the_answers_are_those_of_dvc(tmp_path, parsed):
    original, reader, _ = parsed
    (path := tmp_path / "params.yaml").write_text(FILE)
    for keys in KEYS:
        assert answer(reader, path, keys) == answer(original, path, keys), keys


def test_a_file_is_parsed_once_per_version(tmp_path, parsed):
    _, reader, calls = parsed
    (path := tmp_path / "params.yaml").write_text(FILE)
    for _ in range(5):
        found = answer(reader, path, ["trainings.a"])
        assert found == {"trainings.a": {"seed": 0}}
        found["trainings.a"]["seed"] = 9  # of the caller's copy
    assert len(calls) == 1
    path.write_text(FILE.replace("seed: 0", "seed: 7"))
    assert answer(reader, path, ["trainings.a"]) == {"trainings.a": {"seed": 7}}
    assert len(calls) == 2
