"""Errors of every stage and of every `espalier` verb: one line on stderr and a non-zero exit code.

`--debug` or ESPALIER_DEBUG=1 shows the traceback. An error that this project did not raise itself
is unexpected: its line names the log with the traceback.
"""

from __future__ import annotations

import dis
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from pipeline.messages import one_line, suggestion

F = TypeVar("F", bound=Callable[..., Any])
DEBUG = "ESPALIER_DEBUG"
INTERRUPTED = 130  # the exit code that a shell reports after Ctrl-C
OURS = ("pipeline", "stages", "methods", "models", "reports", "__main__")
_RAISE = dis.opmap["RAISE_VARARGS"]


def message_of(error: BaseException) -> str:
    """The message of an exception. Removes the quotes that KeyError adds."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or type(error).__name__


def is_expected(error: BaseException) -> bool:
    """Whether a `raise` statement of this project raised it, so that its message is enough."""
    last = error.__traceback__
    if last is None or isinstance(error, AssertionError):
        return False
    while last.tb_next is not None:
        last = last.tb_next
    module = str(last.tb_frame.f_globals.get("__name__", ""))
    ours = module.partition(".")[0] in OURS
    return ours and last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE


class _OneLineErrors(click.Command):
    """Runs a command so that any error becomes one line."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # Declared only for `--help`: `main` removes the option wherever it is.
        show = click.Option(["--debug"], is_flag=True, expose_value=False,
                            help=f"Show the traceback of an error (or set {DEBUG}=1).")  # fmt: skip
        self.params.append(show)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Like click's. In standalone mode an error ends the process with one line."""
        arguments = list(sys.argv[1:] if args is None else args)
        if "--debug" in arguments:
            arguments = [a for a in arguments if a != "--debug"]
            os.environ[DEBUG] = "1"  # the processes of a team inherit it
        if not standalone_mode:
            return super().main(arguments, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(arguments, prog_name, standalone_mode=False, **extra)
        except click.Abort as error:
            _fail(error, "interrupted", INTERRUPTED)
        except click.ClickException as error:
            _fail(error, _usage(error), error.exit_code)
        except Exception as error:
            _fail(error, _line(error, [_program(self), *(arguments or _run_by_dvc())]), 1)
        sys.exit(code if isinstance(code, int) else 0)


class StageCommand(_OneLineErrors):
    """The command of a stage: `@click.command(cls=StageCommand)`."""


def instance_option(stage: str, option: str, block: str) -> Callable[[F], F]:
    """The click option for the instance of a stage, an entry of `block` in params.yaml.

    Its default is the instance that DVC runs, taken from the environment. If `cmd` of dvc.yaml
    contained the name, a shell would interpret it before this project can check it.
    """

    def chosen(ctx: click.Context, option: click.Parameter, key: str | None) -> str:
        name, *running = _run_by_dvc()
        key = key or (running[0] if running and name == stage else None)
        if not key:
            raise click.MissingParameter(ctx=ctx, param=option)
        return key

    told = f"An entry of `{block}` in params.yaml; DVC names it in DVC_STAGE."
    return click.option(option, "key", callback=chosen, help=told)


class Group(_OneLineErrors, click.Group):
    """A group of commands that suggests a name for a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with "did you mean"."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            ctx.fail(f"no command {args[0]!r}; {suggestion(args[0], names)}")
        return super().resolve_command(ctx, args)


def _fail(error: BaseException, text: str, code: int) -> NoReturn:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    click.echo(f"error: {one_line(text)}", err=True)
    sys.exit(code)


def _run_by_dvc() -> list[str]:
    """The stage that DVC runs and its instance, if it has one."""
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2].split("@", 1)


def _program(command: click.Command) -> str:
    """The stage or verb, for the name of its log."""
    module = getattr(command.callback, "__module__", "")
    return Path(sys.argv[0]).stem if module == "__main__" else module.rpartition(".")[2]


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    way_out = f" (see `{context.command_path} --help`)" if context else ""
    return f"{error.format_message().rstrip()}{way_out}"


def _line(error: Exception, command: Sequence[str]) -> str:
    if is_expected(error):
        return message_of(error)
    log = _write_log(error, command)
    where = f"traceback in {log}, or shown" if log else "traceback shown"
    # Name the log first: the middle of a long message is cut out.
    return f"unexpected {type(error).__name__} ({where} with --debug): {message_of(error)}"


def _write_log(error: Exception, command: Sequence[str]) -> Path | None:
    """The file with the traceback; None if it could not be written, e.g. on a full disk."""
    name = "-".join(w for w in command if w and w.replace("-", "").replace("_", "").isalnum())
    folder = Path(".checkpoints") if Path("params.yaml").exists() else Path(tempfile.gettempdir())
    rank = f".rank{os.environ['RANK']}" if "RANK" in os.environ else ""
    log = folder / f"error-{name[:100]}{rank}.log"
    try:
        folder.mkdir(exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return None
    return log
