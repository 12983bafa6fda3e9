"""`--help` of every verb, and `--version`."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import __version__
from pipeline.cli.main import VERBS, espalier

ROOT = Path(__file__).resolve().parents[3]


def test_every_verb_has_help_and_examples_keep_their_lines() -> None:
    shown = {}
    for verb in VERBS:
        result = CliRunner().invoke(espalier, [verb, "--help"])
        assert result.exit_code == 0, result.output
        shown[verb] = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "espalier bundle import back.tar.gz here, then `dvc repro`" in shown["bundle"]
    assert any(line.startswith("espalier check --write-docs rewrites") for line in shown["check"])


def test_the_version_is_known_in_a_checkout_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    result = CliRunner().invoke(espalier, ["--version"])
    assert result.output == f"espalier, version {__version__}\n"
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
