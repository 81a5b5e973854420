"""The house: an import goes down only, never between rooms of one floor, never in a circle."""

import ast
from pathlib import Path
from typing import Iterator, Tuple

import pytest

import rdpnet_timm

PACKAGE = Path(rdpnet_timm.__file__).parent
FLOORS = (  # from the top; __init__ is the door, and stands outside
    ("cli",),
    ("bench", "demo"),
    ("train",),
    ("openmmlab",),
    ("checkpoint", "autoload", "ddp_on_cpu", "predict"),
    ("rdpnet",),
    ("deploy", "blocks"),
    ("measure", "fused"),
    ("convert", "weights"),
    ("reparam", "files", "extras", "progress", "allocator", "signals"),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports() -> Iterator[Tuple[Path, str, str]]:
    """Each import inside the package: the file, its room, and the room that it imports from."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = []
            if isinstance(node, ast.ImportFrom) and node.level:
                base = list(parts[: len(parts) - node.level])
                module = base + (node.module.split(".") if node.module else [])
                targets = [module] if module else [[alias.name] for alias in node.names if alias.name in FLOOR]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rdpnet_timm."):
                targets = [node.module.split(".")[1:]]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".") for alias in node.names]
                targets = [name[1:] for name in names if name[0] == "rdpnet_timm" and len(name) > 1]
            for target in targets:
                yield path.relative_to(PACKAGE), parts[0], target[0]


def test_every_room_has_its_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not rooms - {"__init__"} - set(FLOOR), "say on which floor a new room lies"


def test_imports_go_down_only():
    doors = ("__init__", "autoload")  # what registers the models has to reach up to them
    wrong = [
        f"{path} ({room}) imports {target}"
        for path, room, target in imports()
        if room not in doors and room != target and FLOOR[target] <= FLOOR[room]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_no_circle_inside_a_room(room):
    edges = {}
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and path.stem != "__init__":
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                edges.setdefault(path.stem, set()).update(names)

    def reaches(start: str, goal: str, seen: frozenset) -> bool:
        return any(
            step == goal or (step not in seen and reaches(step, goal, seen | {step})) for step in edges.get(start, ())
        )

    assert not [name for name in edges if reaches(name, name, frozenset())]


def test_no_function_hides_the_module_of_its_name():
    hidden = []
    for init in PACKAGE.rglob("__init__.py"):
        modules = {path.stem for path in init.parent.glob("*.py")} | {
            p.parent.name for p in init.parent.glob("*/__init__.py")
        }
        for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                inside = node.module is None
                hidden += [alias.name for alias in node.names if alias.name in modules and not inside]
    assert not hidden
