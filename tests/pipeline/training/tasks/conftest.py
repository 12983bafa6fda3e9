"""Prepared questions."""

from __future__ import annotations

import pytest

from pipeline.data.prepare import prepare
from pipeline.data.prepared import Prepared, load_prepared
from tests.squad_world import config, write_squad, write_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("squad")
    tokenizer = write_tokenizer(folder / "tokenizer")
    prepare(config(write_squad(folder / "raw"), tokenizer, val_size=8), folder / "out")
    return load_prepared(folder / "out")
