"""Which module of the package imports which, read from the syntax trees; tests and the picture of the house share it.

A *module* is a file without its tests, by its full name. A *room* is a folder or module at the top of the package. The
package's own ``__init__`` names the public face and is no room, nor are ``__main__`` and what pytest reads.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
NAME = PACKAGE.name
NO_ROOM = {"__init__", "__main__", "conftest", "tests"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Imports:
    """What one file imports, as full dotted names; ``from a import b`` is ``a.b``.

    Attributes:
        at_once: while it is imported itself.
        on_demand: within functions, for type checkers, or by a string that names a module of the package.
    """

    at_once: frozenset[str]
    on_demand: frozenset[str]


def names(node: ast.AST) -> list[str]:
    """Full dotted names of what one statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of what is imported, wherever the import stands."""
    for node in ast.walk(tree):
        yield from names(node)


def _now(node: ast.AST) -> Iterator[str]:
    """What runs when the module is imported: all but the bodies of functions and of ``if TYPE_CHECKING:``."""
    if isinstance(node, Function | ast.Lambda):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for part in node.orelse:
            yield from _now(part)
        return
    yield from names(node)
    for child in ast.iter_child_nodes(node):
        yield from _now(child)


def read(tree: ast.AST) -> Imports:
    """The imports of one file.

    >>> read(ast.parse("import torch\\ndef f():\\n    from norse.torch import LIFCell")).on_demand
    frozenset({'norse.torch.LIFCell'})
    """
    at_once = frozenset(_now(tree))
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return Imports(at_once, (frozenset(imports(tree)) | (named & set(modules()))) - at_once)


@cache
def modules() -> dict[str, Path]:
    """Full name of each module -> its file; a folder's name stands for its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if "tests" not in parts and parts not in {("conftest",), ("__main__",)}:
            found[".".join([NAME, *(part for part in parts if part != "__init__")])] = path
    return found


@cache
def trees() -> dict[str, ast.Module]:
    """Full name of each module -> its syntax tree."""
    return {name: ast.parse(path.read_text()) for name, path in modules().items()}


@cache
def found() -> dict[str, Imports]:
    """Full name of each module -> what it imports."""
    return {name: read(tree) for name, tree in trees().items()}


def module_of(name: str) -> str | None:
    """The module of the package that an imported name is, or lies in."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or None


def graph(*, on_demand: bool = False) -> dict[str, frozenset[str]]:
    """Each module but the public face -> the modules of the package that it imports."""
    result = {}
    for name, what in found().items():
        chosen = what.at_once | what.on_demand if on_demand else what.at_once
        targets = {module_of(target) for target in chosen} - {name, None}
        result[name] = frozenset(target for target in targets if target)
    del result[NAME]
    return result


def loading() -> dict[str, frozenset[str]]:
    """As :func:`graph`; and each import of ``a.b.c`` from outside of ``a.b`` runs the ``__init__`` of ``a.b`` too."""
    result = {}
    for name, targets in graph().items():
        folders = {".".join(target.split(".")[:size]) for target in targets for size in range(2, target.count(".") + 1)}
        result[name] = targets | {folder for folder in folders if not f"{name}.".startswith(f"{folder}.")}
    return result


def room_of(module: str) -> str:
    """The room that a module of the package lies in, by its short name."""
    return module.split(".")[1]


def rooms(*, on_demand: bool = False) -> dict[str, frozenset[str]]:
    """Each room -> the rooms that it imports."""
    result: dict[str, set[str]] = {}
    for name, targets in graph(on_demand=on_demand).items():
        mine = result.setdefault(room_of(name), set())
        mine |= {room_of(target) for target in targets if target != NAME} - {room_of(name)}
    return {room: frozenset(result[room]) for room in sorted(result)}


def cycle(edges: Graph) -> list[str]:
    """A way that leads back to its beginning, or nothing.

    >>> cycle({"a": frozenset("b"), "b": frozenset("a")}), cycle({"a": frozenset("b"), "b": frozenset()})
    (['a', 'b', 'a'], [])
    """
    done: set[str] = set()

    def follow(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for target in sorted(edges.get(node, ())):
            if circle := follow(target, [*way, node]):
                return circle
        done.add(node)
        return []

    return next((circle for node in sorted(edges) if (circle := follow(node, []))), [])


def chains(edges: Graph) -> dict[str, list[str]]:
    """Each node -> the longest chain of imports that begins there, itself included.

    >>> chains({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()})["a"]
    ['a', 'b', 'c']

    Raises:
        ValueError: the imports go round in a circle.
    """
    if circle := cycle(edges):
        raise ValueError(f"imports go round in a circle: {' -> '.join(circle)}")
    result: dict[str, list[str]] = {}

    def longest(node: str) -> list[str]:
        if node not in result:
            below = [longest(target) for target in sorted(edges.get(node, ()))]
            result[node] = [node, *max(below, key=len, default=[])]
        return result[node]

    for node in sorted(edges):
        longest(node)
    return result


def longest_chain() -> list[str]:
    """The longest chain of modules, each of which imports the next."""
    return max(chains(graph()).values(), key=len)


def floors() -> list[list[str]]:
    """Rooms by floor, the ground floor first: each room stands one above the highest that it imports."""
    height = {room: len(chain) for room, chain in chains(rooms()).items()}
    return [[room for room in height if height[room] == floor] for floor in range(1, max(height.values()) + 1)]


def size_of_signature(function: Function) -> int:
    """How many parameters a function has, without ``self`` and ``cls``; ``*args`` and ``**kwargs`` count one each."""
    given = function.args
    plain = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    own = 1 if plain and plain[0].arg in {"self", "cls"} else 0
    return len(plain) - own + (given.vararg is not None) + (given.kwarg is not None)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function definition of a file, nested ones included, with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        inside = prefix
        if isinstance(node, Function | ast.ClassDef):
            inside = f"{prefix}{node.name}."
        if isinstance(node, Function):
            yield inside[:-1], node
        yield from functions(node, inside)


def main() -> None:
    """Print floors, arrows between rooms and the longest chain."""
    arrows = rooms()
    for floor, here in reversed(list(enumerate(floors()))):
        for room in here:
            print(f"{floor}  {room:14s} -> {', '.join(sorted(arrows[room]))}")
    print(sum(map(len, arrows.values())), "arrows; longest chain", len(longest_chain()), *longest_chain(), sep="\n")


if __name__ == "__main__":
    main()
