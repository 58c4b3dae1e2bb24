"""The layout rules of CONTRIBUTING.md, read from the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 300
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


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of what is imported, wherever the import stands; ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


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
        allowed = HOSTS.get(top(module))
        assert allowed is None or folder in allowed, f"{module} may be imported in {sorted(allowed or ())} only"


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
