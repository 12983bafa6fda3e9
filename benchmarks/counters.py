"""How other tools count: `pip install -e .[counters]`, then `python -m benchmarks.counters`.

Every counter gets every layer below, with batch size 1 in evaluation mode. Numbers are printed as
the tool returns them, in its own unit; docs/counting.md explains the differences. If a tool is not
installed or fails on a layer, its cell has the name of the exception. Each number is computed in a
separate process, because some tools replace functions of torch and do not restore them after an
error.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection

import click
import torch
from torch import Tensor, nn

from benchmarks.counted_layers import Row, networks, rows
from pipeline.measure.count import count

FORK = multiprocessing.get_context("fork")


# -- counters: a layer and its input -> the tool's number, in its own unit ------------------------


def _ours(model: nn.Module, x: Tensor) -> float:
    return count(model, x).macs


def _torch(model: nn.Module, x: Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


def _fvcore(model: nn.Module, x: Tensor) -> float:
    from fvcore.nn import FlopCountAnalysis

    return float(FlopCountAnalysis(model, x).total())


def _thop(model: nn.Module, x: Tensor) -> float:
    from thop import profile

    return float(profile(model, inputs=(x,), verbose=False)[0])


def _ptflops(backend: str) -> Callable[[nn.Module, Tensor], float]:
    def run(model: nn.Module, x: Tensor) -> float:
        from ptflops import get_model_complexity_info

        found = get_model_complexity_info(
            model,
            tuple(x.shape[1:]),
            as_strings=False,
            print_per_layer_stat=False,
            backend=backend,
            input_constructor=lambda _: x,
        )[0]
        if found is None:
            raise RuntimeError("it gives no number")
        return float(found)

    return run


def _torchinfo(model: nn.Module, x: Tensor) -> float:
    from torchinfo import summary

    return float(summary(model, input_data=x, verbose=0).total_mult_adds)


def _calflops(model: nn.Module, x: Tensor) -> float:
    from calflops import calculate_flops

    return float(calculate_flops(model, args=[x], output_as_string=False, print_results=False)[1])


def _deepspeed(model: nn.Module, x: Tensor) -> float:
    from deepspeed.profiling.flops_profiler import get_model_profile

    found = get_model_profile(model, args=[x], print_profile=False, as_string=False, warm_up=0)
    return float(found[1])


def _torch_pruning(model: nn.Module, x: Tensor) -> float:
    from torch_pruning.utils import count_ops_and_params

    return float(count_ops_and_params(model, x)[0])


@dataclass(frozen=True)
class Tool:
    """A column: heading, package (for its version), module to import, name of its number."""

    name: str
    package: str
    module: str
    unit: str
    count: Callable[[nn.Module, Tensor], float]


TOOLS = (
    Tool("Espalier", "", "pipeline.measure.count", "MACs", _ours),
    Tool("torch", "torch", "torch", "FLOPs", _torch),
    Tool("fvcore", "fvcore", "fvcore.nn", '"FLOPs"', _fvcore),
    Tool("thop", "thop", "thop", "MACs", _thop),
    Tool("ptflops pytorch", "ptflops", "ptflops", "MACs", _ptflops("pytorch")),
    Tool("ptflops aten", "ptflops", "ptflops", "MACs", _ptflops("aten")),
    Tool("torchinfo", "torchinfo", "torchinfo", '"mult-adds"', _torchinfo),
    Tool("calflops", "calflops", "calflops", "MACs", _calflops),
    Tool("DeepSpeed", "deepspeed", "deepspeed.profiling.flops_profiler", "MACs", _deepspeed),
    Tool("Torch-Pruning", "torch-pruning", "torch_pruning", '"MACs"', _torch_pruning),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what the tools print, warn and log."""
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def cell(tool: Tool, row: Row) -> str:
    """The result of one tool for one layer, computed in a fork of this process."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_answer, args=(tool, row, send))
    process.start()
    send.close()
    try:
        return str(receive.recv())
    except EOFError:
        return "crash"
    finally:
        process.join()


def _answer(tool: Tool, row: Row, send: Connection) -> None:
    try:
        with quiet():
            found = f"{tool.count(row.build().eval(), row.example):,.0f}"
    except Exception as error:
        found = type(error).__name__
    send.send(found)


def load() -> None:
    """Import every tool once, before the forks."""
    for tool in TOOLS:
        with contextlib.suppress(ImportError), quiet():
            importlib.import_module(tool.module)


def installed(tool: Tool) -> str:
    """The version of a tool."""
    try:
        return version(tool.package) if tool.package else ""
    except PackageNotFoundError:
        return "not installed"


@click.command(help=__doc__)
@click.option("--networks/--layers", "whole", default=False, help="whole networks, minutes")
def main(whole: bool) -> None:
    """Print a Markdown table: a line per layer, a column per tool."""
    torch.set_num_threads(1)
    load()
    lines = [
        ["layer", "by hand", *(f"{t.name} {installed(t)}".strip() for t in TOOLS)],
        ["---"] * (len(TOOLS) + 2),
        ["unit", "MACs", *(t.unit for t in TOOLS)],
    ]
    for row in networks() if whole else rows():
        lines.append([row.name.strip(), f"{row.by_hand:,}", *(cell(t, row) for t in TOOLS)])
    for line in lines:
        sys.stdout.write(f"| {' | '.join(line)} |\n")


if __name__ == "__main__":
    main()
