"""The layout rules of CONTRIBUTING.md, read from the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sbc_plugin.tests import import_graph
from sbc_plugin.tests.import_graph import PACKAGE, imports, room_of

FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 300
MOST_ROOMS, MOST_FLOORS, LONGEST_CHAIN, MOST_PARAMETERS = 16, 10, 14, 6
VAGUE_NAMES = {"utils", "util", "base", "common", "helpers", "helper", "manager", "misc"}

# A host, and the folders of the package that may import it. `sklearn` holds the demo's data; `nir` reads files as
# Norse's neurons, so it is an adapter between the two.
HOSTS = {
    "norse": {"norse", "demo", "nir"},
    "nir": {"norse", "nir"},
    "nirtorch": {"norse", "nir"},
    "h5py": {"nir"},
    "torch_pruning": {"torch_pruning"},
    "brevitas": {"brevitas"},
    "onnx": {"brevitas"},
    "onnxoptimizer": {"brevitas"},
    "onnxruntime": {"brevitas"},
    "qonnx": {"brevitas"},
    "neurobench": {"neurobench"},
    "sklearn": {"demo"},
    "matplotlib": {"evaluation"},
}
# torch puts these on its default device, which a user may have set to another than the model's.
MAKERS = {
    "arange",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
}
CORE_MAY_IMPORT = ("torch", "sbc_plugin.errors", "sbc_plugin.core")

# Functions that may have more parameters than MOST_PARAMETERS, and why.
FACE = "part of the public face, where every choice is one keyword"
SOLVER = "a solver of core: the problem and the settings of one method, as plain tensors and numbers"
MAY_BE_LONG = {
    "sbc_plugin.compression.compress.compress": FACE,
    "sbc_plugin.compression.search.search": FACE,
    "sbc_plugin.compression.sweep.sweep": FACE,
    "sbc_plugin.brevitas.export.export_onnx": FACE,
    "sbc_plugin.brevitas.layers.quantize_layers": FACE,
    "sbc_plugin.brevitas.mode.sbc_mode.__init__": FACE,
    "sbc_plugin.nir.files.compress_file": FACE,
    "sbc_plugin.torch_pruning.pruner.SBCPruner.__init__": FACE,
    "sbc_plugin.torch_pruning.pruner.get_pruner": FACE,
    "sbc_plugin.torch_pruning.weights.WeightPruner.__init__": FACE,
    "sbc_plugin.core.pruning.hybrid.hybrid_mask": SOLVER,
    "sbc_plugin.core.pruning.prune.prune": SOLVER,
    "sbc_plugin.core.quantization.coordinate_descent.descend": SOLVER,
    "sbc_plugin.core.quantization.grids.make_grid": SOLVER,
    "sbc_plugin.core.quantization.scale_search.quantise": SOLVER,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def top(module: str) -> str:
    return module.partition(".")[0]


def host_of(module: str) -> str | None:
    """The host that an imported name belongs to; ``onnx...`` that is not in the list counts as ONNX."""
    name = top(module)
    if name in HOSTS:
        return name
    return "onnx" if name.startswith("onnx") else None


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.fixture(params=FILES, ids=name_of)
def path(request: pytest.FixtureRequest) -> Path:
    result = request.param
    assert isinstance(result, Path)
    return result


def test_the_reader_sees_imports_inside_functions() -> None:
    tree = ast.parse("import torch\ndef f():\n    from norse.torch import LIFCell\n")
    assert list(imports(tree)) == ["torch", "norse.torch.LIFCell"]
    assert within("torch.nn", ("torch",)) and not within("torch_pruning", ("torch",))


def test_imports_stay_in_their_folder(path: Path) -> None:
    folder = path.relative_to(PACKAGE).parts[0]
    for module in imports(ast.parse(path.read_text())):
        if folder == "core":
            stdlib = top(module) in sys.stdlib_module_names
            assert stdlib or within(module, CORE_MAY_IMPORT), f"core is free of everything but torch, not {module}"
        host = host_of(module)
        allowed = HOSTS[host] if host else None
        assert allowed is None or folder in allowed, f"{module} may be imported in {sorted(allowed or ())} only"


def test_a_host_stays_out_when_another_folder_is_loaded() -> None:
    """``sbc_plugin.torch_pruning`` has to work where Norse is not installed: hosts meet through the protocol."""
    wrong = []
    for module, targets in import_graph.graph().items():
        for target in targets - {import_graph.NAME}:
            room = room_of(target)
            if room in HOSTS and room != room_of(module) and room_of(module) not in HOSTS[room]:
                wrong.append(f"{module} imports {target} while it is loaded")
    assert not wrong, wrong


def test_no_module_imports_the_public_face() -> None:
    """The public face imports all of them, so a module that needed it would need itself."""
    wrong = [module for module, targets in import_graph.graph().items() if import_graph.NAME in targets]
    assert not wrong, f"{wrong}: import from the module that holds the name"


def test_imports_between_rooms_point_down() -> None:
    assert import_graph.cycle(import_graph.rooms()) == []
    assert len(import_graph.rooms()) <= MOST_ROOMS
    assert len(import_graph.floors()) <= MOST_FLOORS


def test_imports_between_modules_go_round_in_no_circle() -> None:
    assert import_graph.cycle(import_graph.graph()) == []
    assert import_graph.cycle(import_graph.loading()) == []  # with the __init__ of every folder on the way


def test_chains_of_imports_stay_short() -> None:
    chain = import_graph.longest_chain()
    assert len(chain) <= LONGEST_CHAIN, f"{len(chain)} modules: {' -> '.join(chain)}"


def test_the_reader_knows_what_runs_while_a_module_is_loaded() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "class C:\n    import c\n    def f(self):\n        import d\ntry:\n    import e\nfinally:\n    import f\n"
        "NAME = 'sbc_plugin.layers'\n"
    )
    found = import_graph.read(tree)
    assert found.at_once == {"typing.TYPE_CHECKING", "b", "c", "e", "f"}
    assert found.on_demand == {"a", "d", "sbc_plugin.layers"}


def test_functions_take_few_parameters() -> None:
    sizes = {
        f"{module}.{name}": import_graph.size_of_signature(function)
        for module, tree in import_graph.trees().items()
        for name, function in import_graph.functions(tree)
    }
    long = {name: size for name, size in sizes.items() if size > MOST_PARAMETERS}
    wrong = {name: size for name, size in long.items() if name not in MAY_BE_LONG}
    assert not wrong, f"more than {MOST_PARAMETERS} parameters; make one object of what goes together: {wrong}"
    assert not set(MAY_BE_LONG) - set(long), f"no exceptions any more: {sorted(set(MAY_BE_LONG) - set(long))}"


def test_parameters_are_counted_as_callers_see_them() -> None:
    tree = ast.parse("class C:\n    def f(self, a, /, b, *args, c=1, **kwargs): ...\n    async def g(cls): ...\n")
    counted = {name: import_graph.size_of_signature(function) for name, function in import_graph.functions(tree)}
    assert counted == {"C.f": 5, "C.g": 0}


def homeless(tree: ast.AST) -> Iterator[int]:
    """Lines of ``torch.zeros(...)`` and the like without a device."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{maker}" for maker in MAKERS}:
            yield from [] if any(keyword.arg == "device" for keyword in node.keywords) else [node.lineno]


def test_every_new_tensor_names_its_device(path: Path) -> None:
    if {"tests", "demo"}.isdisjoint(path.relative_to(PACKAGE).parts):
        lines = list(homeless(ast.parse(path.read_text())))
        assert not lines, f"lines {lines}: give device=, or use new_zeros and the like"


def test_file_is_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines; split it by what it holds"


def test_module_is_named_after_what_it_holds(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    assert not VAGUE_NAMES.intersection(parts)


def test_importing_the_package_loads_no_host() -> None:
    script = f"import sys, sbc_plugin; print(*sorted({set(HOSTS)!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
