"""The rooms of the package: no import runs upwards or in a circle, and each room is where its README says it is."""

import ast
from graphlib import TopologicalSorter

from tests import ROOT

FLOORS = (  # from top to bottom; rooms of one floor do not know each other
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
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
REPORT = (  # within the report
    ("render", "verify", "compare"),
    ("showable",),
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


def room(module):
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES} == FLOOR.keys()


def test_no_import_runs_upwards():
    upwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if room(module) != room(other) and FLOOR[room(other)] <= FLOOR[room(module)]
    ]
    assert not upwards


def test_within_the_report_data_flows_one_way():
    floor = {part: number for number, parts in enumerate(REPORT) for part in parts}
    inside = {module: module.split(".")[2] for module in MODULES if module.startswith("unlearnbench.report.")}
    assert set(inside.values()) == floor.keys()
    upwards = [
        f"{module} imports {other}"
        for module, part in inside.items()
        for other in GRAPH[module] & inside.keys()
        if part != inside[other] and floor[inside[other]] <= floor[part]
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(GRAPH).prepare()  # raises a CycleError that names them


def test_nobody_imports_a_plugin():
    assert not [(module, other) for module, others in GRAPH.items() for other in others if other.startswith(PLUGINS)]


def test_the_report_reads_the_store_alone():
    known = {room(other) for module, others in GRAPH.items() if room(module) == "report" for other in others}
    assert known == {"report", "store", "errors", "version"}
