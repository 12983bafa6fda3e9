"""The page on detectors, ViTs, decoders and mixtures: every block runs on its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_docs import DOCS, blocks

PAGE = "families.md"
FOUND = blocks(PAGE)


def test_there_is_one_block_per_family() -> None:
    assert len(FOUND) == 4


@pytest.mark.parametrize("number", range(4), ids=["detector", "vit", "decoder", "experts"])
def test_a_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, code = FOUND[number]
    if "import timm" in code:
        pytest.importorskip("timm", reason="pip install -e .[zoo]")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * line + code, str(DOCS / PAGE), "exec"), {})
