"""Prints how the rooms of each folder import each other, counted from the code itself.

python docs/import_graph.py            # the counts
python docs/import_graph.py --arrows   # and every arrow, with the imports behind it

A room of a folder is a module in it, or a folder in it as a whole. An arrow stands for all imports
of one room by another. A circle is a set of modules that import each other; a room that lies in a
circle of rooms has arrows that lead back up. Stages are the folders of `pipeline/` that hold a
step of the curation, or read what the steps left.
"""

import argparse
import ast
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("schemas", "scoring", "pipeline", "training", "training/model")
NOT_STAGES = {"dataset", "job"}
"""Folders of `pipeline/` that are no stage: what stages share, and what runs them."""

Graph = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How a folder's rooms import each other."""

    rooms: int
    floors: int
    arrows: int
    back_up: int
    """Arrows between rooms that import each other, directly or by way of others."""
    circles: int
    """Of modules, within rooms too."""
    stage_to_stage: int

    def __str__(self) -> str:
        """Returns the counts as one line."""
        return (
            f"{self.rooms} rooms, {self.floors} floors, {self.arrows} arrows, "
            f"{self.back_up} back up, {self.circles} circles, "
            f"{self.stage_to_stage} from stage to stage"
        )


def modules_of(folder: str) -> dict[str, Path]:
    """Returns dotted name to path of every module below a folder that holds code."""
    paths = (ROOT / folder).rglob("*.py")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


@functools.cache
def imported_modules(path: Path) -> frozenset[str]:
    """Returns the modules that a file imports, anywhere in it, and the names taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def imports_of(folder: str) -> dict[str, set[str]]:
    """Returns each module below a folder with those of the same folder that it imports."""
    modules = modules_of(folder)
    return {
        name: set(imported_modules(path) & modules.keys()) - {name}
        for name, path in modules.items()
    }


def room_of(module: str, folder: str) -> str:
    """Returns the room of a folder that a module lies in."""
    return module.removeprefix(folder.replace("/", ".") + ".").split(".")[0]


def arrows_of(graph: Graph, folder: str) -> dict[tuple[str, str], list[str]]:
    """Returns each pair of rooms of which one imports the other, with the imports behind it."""
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module, imported in graph.items():
        for other in imported:
            ends = (room_of(module, folder), room_of(other, folder))
            if ends[0] != ends[1]:
                arrows[ends].append(f"{module} -> {other}")
    return dict(arrows)


def reachable(graph: Graph, start: str) -> set[str]:
    """Returns what a node leads to, over any number of steps; itself only by a circle."""
    found: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(graph.get(node, ()))
    return found


def circles_of(graph: Graph) -> list[set[str]]:
    """Returns the sets of nodes that lead to each other."""
    leads = {node: reachable(graph, node) for node in graph}
    circles = {
        frozenset(other for other in leads[node] if node in leads.get(other, ()))
        for node in graph
        if node in leads[node]
    }
    return [set(circle) for circle in circles]


def floors_of(graph: Graph) -> int:
    """Returns how many rooms stand above one another at most, where there is no circle."""
    heights: dict[str, int] = {}

    def height(room: str, above: frozenset[str]) -> int:
        if room not in heights:
            below = (other for other in graph.get(room, ()) if other not in above)
            heights[room] = 1 + max((height(one, above | {room}) for one in below), default=0)
        return heights[room]

    return max((height(room, frozenset({room})) for room in graph), default=0)


def stages_of(rooms: Iterable[str]) -> set[str]:
    """Returns those rooms of `pipeline/` that are stages: its folders but for two."""
    folders = {room for room in rooms if (ROOT / "pipeline" / room / "__init__.py").is_file()}
    return folders - NOT_STAGES


def counts_of(folder: str) -> Counts:
    """Returns how the rooms of a folder import each other."""
    graph = imports_of(folder)
    arrows = arrows_of(graph, folder)
    rooms: dict[str, set[str]] = {room_of(module, folder): set() for module in graph}
    for start, end in arrows:
        rooms[start].add(end)
    stages = stages_of(rooms) if folder == "pipeline" else set()
    circles = circles_of(rooms)
    return Counts(
        rooms=len(rooms),
        floors=floors_of(rooms),
        arrows=len(arrows),
        back_up=sum(any({*ends} <= circle for circle in circles) for ends in arrows),
        circles=len(circles_of(graph)),
        stage_to_stage=sum({*ends} <= stages for ends in arrows),
    )


def main() -> None:
    """Prints the counts of every folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrows", action="store_true", help="print every arrow too")
    arguments = parser.parse_args()
    for folder in FOLDERS:
        print(f"{folder + '/':<16}{counts_of(folder)}")
        if arguments.arrows:
            for ends, imports in sorted(arrows_of(imports_of(folder), folder).items()):
                print(f"  {ends[0]} -> {ends[1]}: {', '.join(sorted(imports))}")


if __name__ == "__main__":
    main()
