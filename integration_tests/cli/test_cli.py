"""The command line, as a user meets it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nir
import numpy
import pytest
import torch

import sbc_plugin
from integration_tests.models.nir_graphs import DT, chain, dense, lif, run
from sbc_plugin import load
from sbc_plugin.checkpoint.folder import Folder
from sbc_plugin.cli import parser as cli
from sbc_plugin.cli.parser import main
from sbc_plugin.nir import read

FACTORY = """
import norse.torch as norse
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    made = norse.SequentialState(nn.Linear(5, 8), norse.LIFBoxCell(), nn.Linear(8, 3), norse.LIFBoxCell())
    with torch.no_grad():
        for weight in made.parameters():
            weight *= 6
    return made

def loader():
    x = (torch.rand(20, 24, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    return [(x[:, i : i + 8], torch.arange(8) % 3) for i in range(0, 24, 8)]

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = model()

    def forward(self, x, state=None):
        z, first = self.layers[1](2 * self.layers[0](x), state and state[0])
        z, second = self.layers[3](self.layers[2](z), state and state[1])
        return z, (first, second)

trained, number = model(), 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a user works in: a network, spikes with labels, and a module of the user's own."""
    nir.write(tmp_path / "model.nir", dense(lif))
    generator = numpy.random.default_rng(0)
    for name, sequences in (("spikes", 40), ("test", 24)):
        x = (generator.random((30, sequences, 5)) < 0.4).astype(numpy.uint8)
        numpy.savez(tmp_path / f"{name}.npz", x=x, labels=generator.integers(0, 4, sequences))
    (tmp_path / "own_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"sbc {sbc_plugin.__version__}\n"


@pytest.mark.parametrize("command", ["", "demo", "inspect", "compress", "compare", "report"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "exit status" in text and ("examples:" in text or command not in ("", "compress"))


def test_an_unknown_seed_is_an_error_message_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seed", "99"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("sbc: no checkpoint") and "--seed 99" in told.err


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['sklearn'] = None; from sbc_plugin.cli import main; sys.exit(main(['demo']))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "sbc: this needs sklearn; pip install 'sbc-plugin[demo]'\n"


def test_every_extra_that_is_named_exists() -> None:
    try:
        import tomllib
    except ModuleNotFoundError:
        pytest.skip("Python 3.10 has no reader of TOML")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert cli.EXTRAS.keys() <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("source", ["model.nir", "own_nets:model", "own_nets:trained"])
def test_inspect(folder: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "inspect", source, "--data", "spikes.npz")
    assert status == 0 and "2 layers" in out and "lif_box" in out and "s on this machine" in out
    status, out, _ = told(capsys, "inspect", source, "--data", "spikes.npz", "--json")
    found = json.loads(out)
    assert [layer["columns"] for layer in found["layers"]] == ([5, 8] if source.startswith("own") else [5, 6])
    assert all(layer["memory"] == 8 * layer["hessians"] * layer["columns"] ** 2 for layer in found["layers"])


def test_inspect_a_nir_file_without_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "inspect", "model.nir")
    assert status == 0 and "2 layers" in out and "on this machine" not in out
    status, _, err = told(capsys, "inspect", "own_nets:model")
    assert status == 1 and "--data" in err


def test_compress_writes_the_file_and_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("compress", "model.nir", "--data", "spikes.npz", "--sparsity", "0.5", "--bits", "4")
    measured = ("--dt", "2e-3", "--test", "test.npz", "--report", "report.html")
    status, out, err = told(capsys, *command, "-o", "small.nir", *measured)
    assert (status, err) == (0, "")
    assert "accuracy:" in out and "24 sequences of held-out data" in out and "written: small.nir" in out
    small = read("small.nir")
    weights = torch.cat([p.detach().flatten() for name, p in small.named_parameters() if p.dim() > 1])
    assert abs(float((weights == 0).double().mean()) - 0.5) < 0.02 and small.dt == 2e-3
    page = Path("report.html").read_text()
    assert "<svg" in page and "model.nir" in page and "reset_value" not in page


def test_compress_for_machines_then_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("compress", "own_nets:model", "--data", "own_nets:loader", "--pattern", "4:8", "-o", "small.nir")
    careful = ("--order", "sequential", "--tuning", "2", "--align", "--outputs", "values")
    status, out, _ = told(capsys, *command, "--json", "--report", "report.json", *careful)
    found = json.loads(out)
    assert status == 0 and found == json.loads(Path("report.json").read_text())
    assert found["report"]["settings"]["prune"]["pattern"] == "4:8"
    calibration = found["report"]["settings"]["calibration"]
    assert (calibration["order"], calibration["tuning"]) == ("sequential", 2)
    assert (calibration["align"], calibration["outputs"]) == (True, "values")
    assert not found["evaluation"]["held_out"]
    status, out, _ = told(capsys, "report", "report.json", "-o", "page.html")
    assert status == 0 and "<svg" in Path("page.html").read_text()


def test_compress_packs_what_load_gives_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("compress", "own_nets:model", "--data", "own_nets:loader", "--bits", "3", "-o", "small.safetensors")
    assert told(capsys, *command)[0] == 0
    reading = ("--data", "own_nets:loader", "--model", "own_nets:model", "--json")
    status, out, _ = told(capsys, "compare", "own_nets:trained", "small.safetensors", *reading)
    assert status == 0 and 0 < json.loads(out)["distance"] < 1
    status, out, _ = told(capsys, "compare", "small.safetensors", "small.safetensors", *reading)
    assert status == 0 and json.loads(out)["distance"] == 0
    status, _, err = told(capsys, "inspect", "small.safetensors", "--data", "spikes.npz")
    assert status == 1 and "--model" in err


def test_layers_share_bits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("compress", "model.nir", "--data", "spikes.npz", "-o", "small.nir", "--bit-allocation", "loss")
    status, out, _ = told(capsys, *command, "--bits", "3", "--json")
    settings = json.loads(out)["report"]["settings"]["quantize"]
    assert status == 0 and (settings["bits"], settings["allocation"]) == (3, "loss")
    status, _, err = told(capsys, *command, "--sparsity", "0.5")
    assert status == 1 and "--bit-allocation belongs to quantisation; give --bits too" in err


def test_a_model_of_any_class_becomes_a_nir_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("own_nets:Own", "--data", "own_nets:loader", "--sparsity", "0.5", "--tuning", "0")
    assert told(capsys, "compress", *common, "-o", "small.nir")[0] == 0
    assert told(capsys, "compress", *common, "-o", "small.safetensors")[0] == 0
    own = importlib.import_module("own_nets")
    small, (x, _) = own.Own(), own.loader()[0]
    load(folder / "small.safetensors", small)
    assert torch.equal(run(read(folder / "small.nir"), x), run(small, x))


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "compare", "model.nir", "model.nir", "--data", "test.npz", "--limit", "5")
    assert status == 0 and "spike distance" in out and "0.0000" in out


COMPRESS = ("compress", "model.nir", "--data", "spikes.npz", "--bits", "4", "-o", "small.nir")


def replaced(**named: str) -> tuple[str, ...]:
    """The command with other values."""
    arguments = list(COMPRESS)
    for name, value in named.items():
        place = {"source": 1, "data": 3, "bits": 5, "output": 7}[name]
        arguments[place] = value
    return tuple(arguments)


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (replaced(source="nothing.nir"), ["no file nothing.nir"]),
        (replaced(source="spikes.npz"), ["'spikes.npz' is no model", "package.module:factory"]),
        (replaced(source="own_nets:nothing"), ["own_nets has no nothing", "model"]),
        (replaced(source="nowhere:model"), ["no module 'nowhere'"]),
        (replaced(source="own_nets:number"), ["gives a int", "torch.nn.Module"]),
        (replaced(source="damaged.nir"), ["damaged.nir"]),
        (replaced(data="nothing.npz"), ["no file nothing.npz"]),
        (replaced(data="model.nir"), ["is no spike data"]),
        (replaced(data="own_nets:number"), ["gives a int", "iterable of batches"]),
        (replaced(data="wide.npy"), ["7"]),
        (replaced(data="flat.npy"), ["flat.npy", "(T, N, ...)"]),
        (replaced(bits="9"), ["bits=9"]),
        (replaced(output="small.txt"), ["small.txt", ".nir or .safetensors or .onnx"]),
        (replaced(output="nowhere/small.nir"), ["nowhere/small.nir", "has no folder"]),
        ((*COMPRESS, "--sparsity", "1.5"), ["sparsity=1.5"]),
        ((*COMPRESS, "--allocation", "lamp"), ["--allocation", "--sparsity"]),
        ((*COMPRESS, "--silent-first"), ["--silent-first", "--sparsity"]),
        ((*COMPRESS, "--tuning", "-1"), ["tuning=-1"]),
        ((*COMPRESS, "--batch", "0"), ["--batch 0"]),
        ((*COMPRESS, "--report", "report.pdf"), ["report.pdf", ".html or .json"]),
        ((*COMPRESS, "--test", "nothing.npz"), ["no file nothing.npz"]),
        (COMPRESS[:4] + COMPRESS[6:], ["nothing to do", "--sparsity"]),
        (("report", "nothing.json", "-o", "page.html"), ["no file nothing.json"]),
        (("report", "spikes.npz", "-o", "page.html"), ["spikes.npz is no JSON"]),
        (("report", "list.json", "-o", "page.html"), ["list.json holds no report"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    folder: Path, command: tuple[str, ...], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "damaged.nir").write_bytes((folder / "model.nir").read_bytes()[:900])
    (folder / "list.json").write_text("[]")
    numpy.save(folder / "wide.npy", numpy.ones((20, 4, 7), numpy.uint8))
    numpy.save(folder / "flat.npy", numpy.ones((20, 4), numpy.uint8))
    before = sorted(os.listdir(folder))
    status, out, err = told(capsys, *command)
    assert (status, out) == (1, "")
    assert err.startswith("sbc: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert sorted(name for name in os.listdir(folder) if name != "__pycache__") == before


def test_debug_shows_where_it_happened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--debug", "inspect", "nothing.nir"), ("inspect", "nothing.nir", "--debug")):
        status, _, err = told(capsys, *arguments)
        assert status == 1 and "Traceback" in err and err.endswith("package.module:factory\n")


def test_an_interrupt_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir(folder))

    def interrupted(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    status, out, err = told(capsys, *COMPRESS)
    assert (status, out, err) == (130, "", "sbc: interrupted\n")
    assert sorted(os.listdir(folder)) == before


def test_the_time_step_of_the_user_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, *COMPRESS, "--dt", str(2 * DT), "--reset", "reset_subtract")[0] == 0
    small = read("small.nir")
    assert small.dt == 2 * DT and small.reset_method.__name__ == "reset_subtract"


def test_a_graph_without_a_rule_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nir.write(folder / "delay.nir", chain((5,), (5,), delay=nir.Delay(numpy.ones(5)), lif=lif(5)))
    status, _, err = told(capsys, *replaced(source="delay.nir"))
    assert status == 1 and "delay" in err.lower()


@pytest.mark.parametrize("output", ["small.nir", "small.safetensors", "small.onnx"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    folder: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may grow beyond 600 bytes here: what a writer is told is what a full disk tells it."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(os.listdir(folder))
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        status, out, err = told(capsys, *replaced(output=output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (status, out) == (1, "")
    assert err.startswith(f"sbc: {output} cannot be written: File too large") and err.count("\n") == 1
    assert sorted(os.listdir(folder)) == before


def test_a_report_that_cannot_be_written_does_not_hide_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *text: str, **named: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status, _, err = told(capsys, *COMPRESS, "--report", "report.html")
    assert status == 1 and "report.html cannot be written: No space left" in err
    assert "small.nir is written" in err and err.count("\n") == 1
    assert Path("small.nir").is_file() and not Path("report.html").exists()


def test_what_was_read_is_told_by_its_axes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data with its axes turned may run all the same: the numbers of sequences and steps show it."""
    assert told(capsys, *COMPRESS)[1].startswith("spikes.npz: ")
    assert "sequences of " in told(capsys, *COMPRESS)[1].splitlines()[0]


def test_the_same_command_goes_on_after_an_interrupt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, *COMPRESS)[0] == 0
    wanted = read("small.nir").state_dict()
    Path("small.nir").unlink()
    write, left = Folder.write, [5]

    def interrupted(self: Folder, name: tuple[str, ...], value: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        write(self, name, value)

    monkeypatch.setattr(Folder, "write", interrupted)
    command = (*COMPRESS, "--resume", "job")
    assert told(capsys, *command) == (130, "", "sbc: interrupted\n")
    assert not Path("small.nir").exists() and os.listdir("job")
    assert told(capsys, *command)[0] == 0
    found = read("small.nir").state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    left[0] = 1  # what is finished writes nothing into the folder
    assert told(capsys, *command)[0] == 0
    status, out, err = told(capsys, *replaced(bits="3"), "--resume", "job")
    assert (status, out) == (1, "") and "quantize.bits is 4 there and 3 here" in err and err.count("\n") == 1


@pytest.mark.parametrize("device", ["cuda:99", "nowhere"])
def test_a_device_that_is_not_there_is_refused_in_one_line(
    device: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["model.nir", "--data", "spikes.npz", "--sparsity", "0.5", "-o", "small.nir", "--device", device]
    code, _, error = told(capsys, "compress", *arguments)
    assert code == 1 and f"--device {device}" in error and len(error.strip().splitlines()) == 1
    assert not (folder / "small.nir").exists()


def test_the_processor_is_a_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.nir", "--data", "spikes.npz", "--sparsity", "0.5", "-o", "small.nir", "--device", "cpu"]
    assert told(capsys, "compress", *arguments, "--memory", "8 GiB")[0] == 0
    assert (folder / "small.nir").exists()
