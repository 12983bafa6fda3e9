"""Any error of a stage or command is one line; the traceback is in a log."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from pipeline.cli.main import VERBS, espalier
from pipeline.study.execution import commands
from pipeline.study.execution.commands import Group, StageCommand
from tests.pipeline.study.params.test_pipeline_reads import COMPLETE

STAGES = sorted(p.stem for p in Path("stages").glob("[a-z]*.py"))
OPTION = {"train": "training", "sweep": "training", "connect": "pair"}
SCREEN = 80 * 24


def call(command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def one_error(result: Result) -> str:
    """The single line that a failed command printed."""
    assert result.exit_code != 0
    assert result.output.count("\n") == 1, result.output
    assert result.output.startswith("error: ")
    assert len(result.output) < SCREEN
    return result.output.removeprefix("error: ").strip()


@pytest.fixture
def broken_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESPALIER_DEBUG", raising=False)
    monkeypatch.setattr(commands, "OURS", (*commands.OURS, "tests"))
    (tmp_path / "params.yaml").write_text("study: t\ntrian: {}\n")
    return tmp_path


def arguments_of(stage: str) -> list[str]:
    if stage in ("prepare_data", "report", "check"):
        return []
    return [f"--{OPTION.get(stage, 'pruning')}", "a"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_refuses_a_broken_file_by_one_line(stage: str, broken_study: Path) -> None:
    main = importlib.import_module(f"stages.{stage}").main
    assert isinstance(main, StageCommand)
    told = one_error(call(main, *arguments_of(stage)))
    assert told.startswith("params.yaml: trian: ")


NAMED = {"prunings": ("prune", "finetune", "evaluate"), "trainings": ("train", "sweep"),
         "connect.pairs": ("connect",)}  # fmt: skip


@pytest.mark.parametrize(("block", "stage"), [(b, s) for b, names in NAMED.items() for s in names])
def test_a_name_that_is_not_there_is_refused_first(
    block: str, stage: str, broken_study: Path
) -> None:
    (broken_study / "params.yaml").write_text(COMPLETE)
    main = importlib.import_module(f"stages.{stage}").main
    told = one_error(call(main, *arguments_of(stage)[:1], "zz"))
    assert told.startswith(f"params.yaml: {block}.zz: no such entry; (known: ")


VERB_ARGUMENTS = {
    "run": [],
    "units": ["--training", "a"],
    "bundle": ["export", "a", "--out", "x.tar.gz"],
}


@pytest.mark.parametrize("verb", VERB_ARGUMENTS)
def test_a_verb_says_the_same_line(verb: str, broken_study: Path) -> None:
    told = one_error(call(espalier, verb, *VERB_ARGUMENTS[verb]))
    assert told.startswith("params.yaml: trian: ")


def test_a_mistyped_verb_or_option_is_suggested() -> None:
    assert "did you mean 'units'" in one_error(call(espalier, "unit"))
    main = importlib.import_module("stages.train").main
    assert "--training" in one_error(call(main, "--trainin", "a"))
    assert "Missing option '--training'" in one_error(call(main))
    for verb in VERBS:
        assert "error: " in call(espalier, verb, "--no-such-option").output


@click.group(cls=Group)
def tree() -> None: ...


@tree.command()
def fault() -> None:
    {}["absent " * 9999]  # noqa: B018


@tree.command()
def refusal() -> None:
    raise ValueError("params.yaml:\n  train:\n" + "long " * 9999 + "\x1b[31m the way out")


def test_an_unexpected_error_names_its_log(broken_study: Path) -> None:
    told = one_error(call(tree, "fault"))
    log = broken_study / ".checkpoints/error-test_commands-fault.log"
    assert told.startswith(
        "unexpected KeyError (traceback in .checkpoints/error-test_commands-fault.log, or shown"
    )
    assert "in fault" in log.read_text()


def test_a_log_that_cannot_be_written_hides_no_error(broken_study: Path) -> None:
    (broken_study / ".checkpoints").write_text("a file where a folder should be")
    assert one_error(call(tree, "fault")).startswith("unexpected KeyError (traceback shown with")


def test_a_long_message_keeps_its_beginning_and_its_end(broken_study: Path) -> None:
    told = one_error(call(tree, "refusal"))
    assert told.startswith("params.yaml: train: long")
    assert told.endswith("?[31m the way out")
    assert not list(broken_study.glob(".checkpoints/*"))


@pytest.mark.parametrize("where", [["--debug", "refusal"], ["refusal", "--debug"]])
def test_debug_shows_the_traceback_and_then_the_line(
    where: list[str], broken_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_DEBUG", "0")  # restored, whatever --debug sets
    told = call(tree, *where).output
    assert "Traceback" in told
    assert "in refusal" in told
    assert told.splitlines()[-1].startswith("error: params.yaml: ")


def test_ctrl_c_is_no_fault(broken_study: Path) -> None:
    @click.command(cls=StageCommand)
    def stopped() -> None:
        raise KeyboardInterrupt

    result = call(stopped)
    assert result.exit_code == commands.INTERRUPTED
    assert result.output.strip() == "error: interrupted"


def test_success_and_help_are_as_ever() -> None:
    assert call(espalier, "--help").exit_code == 0
    assert "--debug" in call(espalier, "--help").output
    assert call(espalier, "units", "--help").exit_code == 0


@pytest.mark.parametrize("folder", ["", "studies/a:b@c/dvc.yaml:"])
def test_a_stage_run_by_dvc_reads_its_instance_from_the_environment(
    folder: str, broken_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (broken_study / "params.yaml").write_text(COMPLETE)
    main = importlib.import_module("stages.prune").main
    monkeypatch.setenv("DVC_STAGE", f"{folder}prune@zz")
    assert one_error(call(main)).startswith("params.yaml: prunings.zz: no such entry")
    monkeypatch.setenv("DVC_STAGE", f"{folder}train@zz")
    assert one_error(call(main)).startswith("Missing option '--pruning'")


def test_no_name_of_params_reaches_a_shell() -> None:
    stages = YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]
    for entry in stages.values():
        assert "${" not in entry.get("do", entry)["cmd"]


def test_every_verb_of_the_list_is_there() -> None:
    for verb in VERBS:
        assert isinstance(espalier.get_command(click.Context(espalier), verb), click.Command)
