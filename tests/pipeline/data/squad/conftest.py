"""Raw files like SQuAD's and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.squad_world import write_squad, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_squad(tmp_path / "raw")
