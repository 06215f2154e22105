"""What a plugin file declares, read from its text, so that a list of plugins need not import torch for each.

Only a file that plainly declares is read so: imports of what is there, constants, functions, and literal keywords in
the decorator. Of any other nothing is said here, and importing it tells, or says what is wrong with it.
"""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import unlearnbench

CONSTANT = (
    ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load,
)  # fmt: skip


def read_declaration(path: Path, name: str, decorator: str) -> dict[str, Any] | None:
    """Return the keywords of `@decorator(...)` on the function `name` in a file, None where only an import can tell."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not all(_is_plain(node) for node in tree.body):
        return None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    calls = [found for node in functions for found in node.decorator_list if isinstance(found, ast.Call)]
    if len(calls) != 1 or not isinstance(calls[0].func, ast.Name) or calls[0].func.id != decorator or calls[0].args:
        return None
    try:
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in calls[0].keywords}
    except ValueError:
        return None


def _is_plain(node: ast.stmt) -> bool:
    """Say whether a statement at the top of a file cannot fail, or do anything but define."""
    if isinstance(node, ast.Import):
        return all(_is_there(alias.name) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        if node.module == unlearnbench.__name__:
            return all(alias.name in unlearnbench.__all__ for alias in node.names)
        return node.level == 0 and _is_there(str(node.module))
    if isinstance(node, ast.Assign):
        return all(isinstance(part, CONSTANT) for part in ast.walk(node.value))
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
