"""`--help` of every verb."""

from __future__ import annotations

from click.testing import CliRunner

from pipeline.cli.main import VERBS, espalier


def test_every_verb_has_help_and_examples_keep_their_lines() -> None:
    shown = {}
    for verb in VERBS:
        result = CliRunner().invoke(espalier, [verb, "--help"])
        assert result.exit_code == 0, result.output
        shown[verb] = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "espalier bundle import back.tar.gz here, then `dvc repro`" in shown["bundle"]
    assert any(line.startswith("espalier check --write-docs rewrites") for line in shown["check"])
