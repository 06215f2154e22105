"""The packages' layers: no import runs upwards or in a circle, and each package is where the README says."""

import ast
from graphlib import TopologicalSorter

from tests import ROOT

LAYERS = (  # from top to bottom; packages of one layer do not import each other
    ("__init__",),
    ("api", "cli"),
    ("report", "kit"),
    ("run",),
    ("measure",),
    ("judges", "unlearn"),
    ("models",),
    ("datasets", "plugins"),
    ("store", "cost"),
    ("errors", "protocols", "sdk", "version"),
)
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
REPORT = (  # within the report
    ("render", "verify", "compare", "tuning"),
    ("pasted",),
    ("html",),
    ("write",),
    ("figures", "tables"),
    ("data",),
)
PLUGINS = ("unlearnbench.methods", "unlearnbench.metrics", "unlearnbench.published")  # nobody imports them by path


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in (ROOT / "unlearnbench").rglob("*.py")}


def imports(path):
    """Yield the project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            if str(node.module).split(".")[0] == "unlearnbench":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "unlearnbench")


GRAPH = {name: set(imports(path)) for name, path in MODULES.items()}


def package(module):
    return module.split(".")[1] if "." in module else "__init__"


def test_every_package_has_its_layer():
    assert {package(module) for module in MODULES} == LAYER.keys()


def test_no_import_runs_upwards():
    upwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if package(module) != package(other) and LAYER[package(other)] <= LAYER[package(module)]
    ]
    assert not upwards


def test_within_the_report_data_flows_one_way():
    layer = {part: number for number, parts in enumerate(REPORT) for part in parts}
    inside = {module: module.split(".")[2] for module in MODULES if module.startswith("unlearnbench.report.")}
    assert set(inside.values()) == layer.keys()
    upwards = [
        f"{module} imports {other}"
        for module, part in inside.items()
        for other in GRAPH[module] & inside.keys()
        if part != inside[other] and layer[inside[other]] <= layer[part]
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(GRAPH).prepare()  # raises a CycleError that names them


def test_nobody_imports_a_plugin():
    assert not [(module, other) for module, others in GRAPH.items() for other in others if other.startswith(PLUGINS)]


def test_the_report_reads_the_store_alone():
    known = {package(other) for module, others in GRAPH.items() if package(module) == "report" for other in others}
    assert known == {"report", "store", "errors", "version"}
