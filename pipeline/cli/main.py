"""Train, prune, measure and compare neural networks in one pipeline.

A study is a folder with params.yaml; run the commands there. `dvc repro` runs the pipeline itself.
"""

from __future__ import annotations

import importlib
import inspect

import click

import pipeline
from pipeline.study.execution.commands import Group

VERBS = {
    "bundle": "Carry trainings to a machine without DVC and bring their results back.",
    "check": "Validate the study; say what would run again and roughly what it costs.",
    "locks": "Say which results are stale; accept code edits that alter none.",
    "readme": "Rewrite the results in README.md from the tracked records.",
    "run": "Run what is stale in a study, on all cores or GPUs, and show what came of it.",
    "status": "Show how far the run in a study folder is.",
    "study": "Make study folders DVC projects of their own.",
    "ui": "Open the runs of this study in MLflow.",
    "units": "Show what can be pruned in a network, and why the rest cannot.",
}


class Verbs(Group):
    """Imports a command's module only when it runs, so that `--help` and completion are fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command with this name, or None."""
        if name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(f"pipeline.cli.{name}"), name)
        command.help = _with_examples(command.help or "")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per command, from `VERBS`, without importing any."""
        with formatter.section("Verbs"):
            formatter.write_dl(sorted(VERBS.items()))


def _with_examples(text: str) -> str:
    """Keep the lines of indented paragraphs, which click would fill."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{p}" if p.startswith("    ") else p for p in parts)


@click.group(cls=Verbs, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pipeline.__version__, prog_name="espalier")
def espalier() -> None: ...
