"""Static checks of a method's source: whether its card is complete, and whether it bypasses the context.

The functions return complaints, each a clause that says what to change.
"""

import ast
import io
import tokenize
from collections.abc import Iterator

from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.sdk import SDK

DATA_LIBRARIES = ("sklearn.datasets", "torchvision.datasets", "datasets")  # they hold the test images too


def card_complaints(source: str, spec: MethodSpec) -> list[str]:
    """Return complaints about what is missing from a method's card.

    Args:
        source: text of the file.
        spec: of the method; a reference or a control needs no formula.
    """
    tree = ast.parse(source)
    complaints = _docstring_complaints(ast.get_docstring(tree) or "", spec)
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == spec.name), None)
    if function is not None:
        settings = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        bare = [a.arg for a, default in settings if (default or a).end_lineno not in comments]
        if bare:
            complaints.append(f"comment {', '.join(bare)} where they stand: each setting's unit and source (# ...)")
    return complaints


def card_hints(spec: MethodSpec) -> list[str]:
    """Return hints on optional parts of a card that are missing."""
    hints = []
    if spec.role == "method" and "digits" not in spec.tuned:
        hints.append("@method(tuned={'digits': {...}}) is empty")
    unbounded = [s for s in spec.settings.values() if s.type in (int, float) and not s.bounds]
    if unbounded:
        names, kind = ", ".join(setting.name for setting in unbounded), unbounded[0].type.__name__
        hints.append(f"give {names} a range, such as Annotated[{kind}, Ge(0)] with annotated_types")
    return hints


def _docstring_complaints(card: str, spec: MethodSpec) -> list[str]:
    if not card:
        return ["open the file with a docstring: a title line, authors or source, the loss, Deviations:"]
    complaints = []
    if spec.paper and spec.paper not in card:
        complaints.append(f"name arXiv:{spec.paper} in the docstring, as @method(paper=...) does")
    if spec.role in ("reference", "control"):
        return complaints
    before, _, deviations = card.partition("\nDeviations:")
    lines = [line for line in before.splitlines()[1:] if line.strip()]
    if spec.role == "method" and all(line.startswith("    ") for line in lines):
        complaints.append("name the method's authors or source below the docstring's title")
    if not any(line.startswith("    ") for line in lines):
        complaints.append("write the loss into the docstring as an indented formula (    L = ...)")
    if not deviations.strip():
        complaints.append(
            "end the docstring with 'Deviations:', how it differs from its paper or code, or that it does not"
        )
    return complaints


def reach_complaints(source: str, name: str) -> list[str]:
    """Return complaints about a method's file bypassing its context.

    Args:
        source: text of the file.
        name: of the method.
    """
    tree = ast.parse(source)
    complaints = [*_import_complaints(tree)]
    contexts = _context_names(tree, name)
    hidden = {f"{ctx}{stream}" for ctx in contexts for stream in ("", ".forget", ".retain")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and ast.unparse(node.value) in hidden:
            complaints.append(f"line {node.lineno} reaches into {ast.unparse(node)}: use the context's public names")
        elif isinstance(node, ast.Call) and _looks_inside(node, hidden):
            complaints.append(f"line {node.lineno} calls {ast.unparse(node)}: use the context's public names")
    return complaints


def _import_complaints(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
        for name in [f"{module}{alias.name}" for alias in node.names]:
            package, _, rest = name.partition(".")
            if package == "unlearnbench" and rest and rest not in SDK:
                yield f"line {node.lineno} imports {name}: import from unlearnbench itself what a plugin may use"
            elif any(name == library or name.startswith(f"{library}.") for library in DATA_LIBRARIES):
                yield f"line {node.lineno} imports {name}: draw images from ctx.forget and ctx.retain"


def _context_names(tree: ast.Module, name: str) -> set[str]:
    """Return the names of the context: the method's first parameter, and any parameter annotated as Context."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args]
            found |= {p.arg for p in parameters if p.annotation and "Context" in ast.unparse(p.annotation)}
            if node.name == name and parameters:
                found.add(parameters[0].arg)
    return found


def _looks_inside(call: ast.Call, hidden: set[str]) -> bool:
    """Whether a call is vars(ctx), or getattr(ctx, "_...")."""
    called, values = ast.unparse(call.func), [ast.unparse(value) for value in call.args]
    if not values or values[0] not in hidden:
        return False
    private = len(values) > 1 and values[1].strip("'\"").startswith("_")
    return called == "vars" or (called == "getattr" and private)
