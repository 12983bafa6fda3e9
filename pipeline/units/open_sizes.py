"""Modules whose code takes the width of their heads from the input, with that width left open.

`B, N, C = x.shape ... x.reshape(B, N, C)` insists that all heads together are as wide as the input.
One size of a reshape follows from the others, so it may be written as -1: the dense network
computes the same, and one that lost heads can run.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

GROUPS = ("num_key_value_groups", "num_key_value_heads")
"""Attributes of attention with grouped queries; their product is the number of heads."""

CHANNELS = frozenset({"c", "d", "ch", "dim", "channels", "embed_dim", "hidden_dim", "hidden_size"})
"""Names that code gives to a number of channels, in lower case."""

HEADS = frozenset({"n_heads", "num_heads", "num_attention_heads"})
NO_BIAS = "position_bias"
"""What T5 and its kin call the zeros that they add to the scores of attention without positions."""


@cache
def opened(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind`, or a subclass with the same forward in which such sizes are -1.

    Code without source, with closures or decorators is left alone.
    """
    skipped = kind.__module__.partition(".")[0] == "torch" or "_opened" in vars(kind)
    if skipped or issubclass(kind, torch.jit.ScriptModule):
        return kind
    own: dict[str, Any] = {}
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, method in vars(base).items():
            if isinstance(method, FunctionType) and name not in own and not name.startswith("__"):
                own[name] = _opened(method, _says_groups(base))
    own = {name: method for name, method in own.items() if method is not None}
    if not own:
        return kind
    return type(
        f"Open{kind.__name__}", (kind,), {**own, "__module__": kind.__module__, "_opened": True}
    )


def _says_groups(kind: type) -> bool:
    """Do its modules hold both factors of the number of heads, as attributes of their own?"""
    try:
        text = inspect.getsource(kind.__init__)  # type: ignore[misc]
    except (OSError, TypeError):
        return False
    return all(f"self.{name} = " in text for name in GROUPS)


@cache
def _opened(function: FunctionType, groups: bool = False) -> FunctionType | None:
    """The function with sizes left open, in itself and in functions of its package that it calls;
    None where there are none. `groups`: see `_says_groups`."""
    node = _parsed(function)
    if node is None:
        return None
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    called = {f.id for f in calls if isinstance(f, ast.Name)}
    package = function.__module__.partition(".")[0]
    others = {}
    for name in called:
        other = function.__globals__.get(name)
        own = isinstance(other, FunctionType) and other.__module__.partition(".")[0] == package
        if own and other is not function and (new := _opened(other)):
            others[name] = new
    editor = _Opener(node, groups)
    editor.visit(node)
    if not editor.changed and not others:
        return None
    return _compiled(function, node, {**function.__globals__, **others} if others else None)


def _parsed(function: FunctionType) -> ast.FunctionDef | None:
    if function.__closure__ or hasattr(function, "__wrapped__"):
        return None
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError, TypeError):
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    private = (n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute))
    return None if any(n.startswith("__") and not n.endswith("__") for n in private) else node


def _compiled(
    function: FunctionType, node: ast.FunctionDef, names: dict[str, Any] | None
) -> FunctionType:
    node.decorator_list, node.returns = [], None
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    tree = ast.fix_missing_locations(ast.Module([node], []))
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    outer = compile(tree, function.__code__.co_filename, "exec", dont_inherit=True)
    code = next(
        c for c in outer.co_consts if isinstance(c, CodeType) and c.co_name == function.__name__
    )
    scope = function.__globals__ if names is None else names
    new = FunctionType(code, scope, function.__name__, function.__defaults__)
    new.__kwdefaults__, new.__doc__ = function.__kwdefaults__, function.__doc__
    new.__module__, new.__qualname__ = function.__module__, function.__qualname__
    return new


class _Opener(ast.NodeTransformer):
    """Writes -1 for one size of every reshape that takes its sizes from a tensor's shape,
    q.size(-1) for the width of a head in q * (C // heads) ** -0.5, the module's own numbers for
    self.config.num_attention_heads, and zeros for one head where position_bias is as many as there
    are heads: they serve all."""

    def __init__(self, node: ast.FunctionDef, groups: bool) -> None:
        self.changed, self.groups = False, groups
        self.measured = frozenset(_measured(node))

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802  (the name that ast calls)
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("reshape", "view"):
            sizes = node.args
            if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
                sizes = sizes[0].elts
            place = self._open(sizes)
            if place is not None:
                sizes[place] = ast.copy_location(
                    ast.UnaryOp(ast.USub(), ast.Constant(1)), sizes[place]
                )
                self.changed = True
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        named = [t.id for t in node.targets if isinstance(t, ast.Name)] == [NO_BIAS]
        made = node.value
        if not (named and isinstance(made, ast.Call) and ast.unparse(made.func) == "torch.zeros"):
            return node
        sizes = (
            made.args[0].elts if made.args and isinstance(made.args[0], ast.Tuple) else made.args
        )
        for i, size in enumerate(sizes):
            if isinstance(size, ast.Attribute) and size.attr in HEADS:
                sizes[i] = ast.copy_location(ast.Constant(1), size)
                self.changed = True
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        if not (self.groups and ast.unparse(node) == "self.config.num_attention_heads"):
            return node
        self.changed = True
        heads = ast.parse(" * ".join(f"self.{name}" for name in GROUPS), mode="eval").body
        return ast.copy_location(heads, node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:  # noqa: N802
        self.generic_visit(node)
        x, power = node.left, node.right
        if not (isinstance(node.op, ast.Mult) and isinstance(x, ast.Name)):
            return node
        if not (isinstance(power, ast.BinOp) and isinstance(power.op, ast.Pow)):
            return node
        if _is_quotient(power.left):
            width = ast.parse(f"{x.id}.size(-1)", mode="eval").body
            power.left = ast.copy_location(width, power.left)
            self.changed = True
        return node

    def _open(self, sizes: list[ast.expr]) -> int | None:
        """Which size to leave open: a quotient, a number of channels, the last one."""
        if len(sizes) < 2 or any(isinstance(s, (ast.Starred, ast.UnaryOp)) for s in sizes):
            return None
        names = [s.id if isinstance(s, ast.Name) else "" for s in sizes]
        quotients = [i for i, s in enumerate(sizes) if _is_quotient(s)]
        channels = [i for i, n in enumerate(names) if n in self.measured and n.lower() in CHANNELS]
        last = [len(sizes) - 1] if names[-1] in self.measured else []
        return next((i for found in (quotients, channels, last) for i in found[-1:]), None)


def _is_quotient(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv)


def _measured(node: ast.FunctionDef) -> Iterator[str]:
    """Names that are given a size of a tensor, or a quotient."""
    for target, value in _assigned(node):
        if isinstance(target, ast.Tuple) and _is_shape(value):
            yield from (t.id for t in target.elts if isinstance(t, ast.Name))
        elif isinstance(target, ast.Name) and (_is_size(value) or _is_quotient(value)):
            yield target.id


def _assigned(node: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    for part in (n for n in ast.walk(node) if isinstance(n, ast.Assign)):
        for target in part.targets:
            if isinstance(target, ast.Tuple) and isinstance(part.value, ast.Tuple):
                yield from zip(target.elts, part.value.elts, strict=False)
            else:
                yield target, part.value


def _is_shape(node: ast.AST) -> bool:
    """x.shape, x.size(), or a part of one."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        return _is_shape(node.value)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr == "size" and not node.args
    return isinstance(node, ast.Attribute) and node.attr == "shape"


def _is_size(node: ast.AST) -> bool:
    """x.shape[i], x.size(i)."""
    if isinstance(node, ast.Subscript):
        return _is_shape(node.value)
    return isinstance(node, ast.Call) and (
        isinstance(node.func, ast.Attribute) and node.func.attr == "size" and bool(node.args)
    )
