"""Declarations of a plugin file, read from its syntax tree, so that listing plugins does not import torch.

The names of functions under `@method` and `@metric` are always read. Keywords of the decorators are read only from
simple files: imports of existing modules, constants, functions, and keywords that are literals or constants of the
file. Other files must be imported.
"""

import ast
import importlib.util
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from unlearnbench.plugins.spec import Kind
from unlearnbench.sdk import SDK

CONSTANT = (
    ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load,
)  # fmt: skip

Name = tuple[Kind, str]


def declared_names(tree: ast.Module) -> list[Name]:
    """Return (kind, name) of every function under `@method` or `@metric`, in the order of the file."""
    return [
        (kind, node.name)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for kind in typing.get_args(Kind)
        if any(decorator_name(decorator) == kind for decorator in node.decorator_list)
    ]


def declared_keywords(tree: ast.Module) -> dict[Name, dict[str, Any]]:
    """Return {(kind, name): keywords of its decorator}, without those that are known only by importing."""
    found: dict[Name, dict[str, Any]] = {}
    if not all(_is_plain(node) for node in tree.body):
        return found
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            _assign(node, constants)
        for kind in typing.get_args(Kind):
            if isinstance(node, ast.FunctionDef) and (call := _declaration(node, kind)):
                with suppress(ValueError, TypeError):
                    found[kind, node.name] = _keywords(call, constants)
    return found


def _declaration(node: ast.FunctionDef, kind: Kind) -> ast.Call | None:
    """Return the call of a function's decorator of this kind, None where it has further decorators."""
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    plain = len(calls) == 1 and isinstance(calls[0].func, ast.Name) and calls[0].func.id == kind
    return calls[0] if plain else None


def decorator_name(decorator: ast.expr) -> str:
    """Return the name of a decorator, without its module."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def _assign(node: ast.Assign, constants: dict[str, Any]) -> None:
    for name in [target.id for target in node.targets if isinstance(target, ast.Name)]:
        try:
            constants[name] = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            constants.pop(name, None)


def _keywords(call: ast.Call, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a decorator, those of `**CONSTANT` included.

    Raises:
        ValueError: one is neither a literal nor a constant, or there is a positional argument.
        TypeError: a keyword is repeated.
    """
    if call.args:
        raise ValueError("only keywords can be read")
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        value = _evaluate(keyword.value, constants)
        found = dict(**found, **(value if keyword.arg is None else {keyword.arg: value}))
    return found


def _evaluate(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        if node.id not in constants:
            raise ValueError(f"{node.id} is not a constant of the file")
        return constants[node.id]
    return ast.literal_eval(node)


def _is_plain(node: ast.stmt) -> bool:
    """Say whether a top-level statement only defines something and cannot fail."""
    if isinstance(node, ast.Import):
        return all(_is_there(alias.name) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        if node.module == "unlearnbench":
            return all(alias.name in SDK for alias in node.names)
        return node.level == 0 and _is_there(str(node.module))
    if isinstance(node, ast.Assign):
        named = all(isinstance(target, ast.Name) for target in node.targets)
        return named and all(isinstance(part, CONSTANT) for part in ast.walk(node.value))
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
