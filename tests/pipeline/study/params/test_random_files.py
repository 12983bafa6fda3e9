"""Random damage to a good file: it stays valid, or one bounded line refuses it."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.study.params.load import ParamsError, load_params
from tests.pipeline.study.params.test_pipeline_reads import COMPLETE

TRIES = 400
SCREEN = 80 * 24
ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**64, 10**12, 1.5, -0.1, 1e300, float("inf"), float("nan"), "",
    "x", "../x", "a;b", "$(x)", "é", "auto", "none", "x" * 3000, [], {}, [1], ["a", "a"], {"x": 1},
    {"name": "sgd"}, [[]], {"": None}, {"epochs": {"match": "macs"}}, "2026-01-01", [None],
]  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested blocks and lists."""
    found = [above] if above else []
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    for key, below in inside:
        found += places(below, (*above, key))
    return found


def damaged(rng: random.Random) -> str:
    """The good file with one to three values replaced, removed, renamed or copied elsewhere."""
    content: Any = copy.deepcopy(YAML(typ="safe").load(COMPLETE))
    for _ in range(rng.randint(1, 3)):
        *above, last = rng.choice(places(content))
        block = content
        for part in above:
            block = block[part]
        how = rng.randrange(4)
        if how == 0:
            del block[last]
        elif how == 1 and isinstance(block, dict):
            block[rng.choice(["x", "", "lr", f"{last}s", "a" * 400, 7])] = block.pop(last)
        else:
            block[last] = copy.deepcopy(rng.choice(ODD))
    out = io.StringIO()
    YAML().dump(content, out)
    text = out.getvalue()
    if rng.random() < 0.2:  # and of the text itself
        at = rng.randrange(len(text))
        text = (
            text[:at] + rng.choice(["\t", "}", '"', "&", "*", "!x ", "\x00", ": ", "%"]) + text[at:]
        )
    return text


def test_no_damage_is_a_raw_exception(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    refused = 0
    for seed in range(TRIES):
        path.write_text(damaged(random.Random(seed)))
        try:
            load_params(path)
        except ParamsError as error:
            told = str(error)
            assert told.startswith(str(path)), (seed, told)
            assert "\n" not in told, (seed, told)
            assert len(told) < SCREEN, (seed, told)
            refused += 1
    assert refused > TRIES / 2
