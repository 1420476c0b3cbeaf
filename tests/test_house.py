"""Who may know whom: imports go one way, files and rooms alike. The order is the contract of the house."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import ROOT

SOURCE = ROOT / "src" / "vrm"
FLOORS = (
    (
        *("records", "runfiles", "config", "statistics", "checkpoints", "ours", "provenance"),
        *("alive", "launch", "warm", "watch"),
    ),
    ("world", "data", "models"),
    ("training", "generation", "judging", "serving"),
    ("judged", "evaluation"),
    ("planning", "reporting"),
    ("people",),
    ("cli",),
)
"""From what everybody may know to what nobody does; rooms of one floor may know each other one way."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path):
    """A file as the name that is imported; a package stands for its `__init__.py`."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCE.rglob("*.py")}


def imports_of(module):
    """Modules of ours that a file imports, inside functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute, so that they can be found"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES and name != module}


GRAPH = {module: imports_of(module) for module in MODULES}


def room(module):
    """The room of a module: the first name below `vrm`."""
    return module.split(".")[1] if "." in module else module


def assert_no_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} - {"vrm", "__main__"} <= set(FLOOR)


def test_progress_is_said_by_one_module():
    """A bar of its own would fill a log with carriage returns."""
    text = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    assert {module for module in text if "import tqdm" in text[module]} == {"vrm.watch"}


def test_no_circle_between_files():
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert_no_circle({module: known - packages for module, known in GRAPH.items()})


def test_no_circle_between_rooms():
    rooms = {}
    for module, known in GRAPH.items():
        rooms.setdefault(room(module), set()).update(room(name) for name in known)
    assert_no_circle({name: known - {name} for name, known in rooms.items()})


def test_nobody_knows_a_higher_floor():
    upward = [
        f"{module} -> {name}"
        for module, known in GRAPH.items()
        for name in known
        if room(module) in FLOOR and room(name) in FLOOR and FLOOR[room(name)] > FLOOR[room(module)]
    ]
    assert not upward
