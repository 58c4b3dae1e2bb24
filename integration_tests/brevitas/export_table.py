"""The benchmark's networks through every export: ``python -m integration_tests.brevitas.export_table``.

Each network comes from its checkpoint and is quantised in both ways. Each export answers as the Brevitas model, or says
why there is none; the table stands in docs/hosts.md. Some minutes on one core.
"""

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from integration_tests.benchmarks.cases import CASES_BY_NAME, Case
from integration_tests.benchmarks.tables import markdown
from integration_tests.models.onnx_running import run_qonnx, run_steps, run_whole
from sbc_plugin import Calibration, Quantize, compress
from sbc_plugin.brevitas import export_onnx, export_torchscript, freeze, quantize_layers, sbc_mode, weight_quantizer
from sbc_plugin.errors import CompressionError

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"
START = "<!-- exports of the benchmark's networks, by python -m integration_tests.brevitas.export_table: -->"
END = "<!-- end of exports -->"
SEQUENCES, STEPS = 3, 2  # few, for the files hold each step of each neuron
STEPS_OF = {"2fc-events": 3, "recurrent": 6}  # their output is silent before
ROUNDING = 1e-5  # of the largest value: float32 sums in another order


def spikes(case: Case) -> Tensor:
    """Random spikes (T, B, ...) of the case's shape: no data are needed."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand((STEPS_OF.get(case.name, STEPS), SEQUENCES, *case.shape), generator=generator) < 0.3).float()


def by_mode(case: Case) -> nn.Module:
    """The trained network through ``quantize_layers`` and ``sbc_mode``."""
    model, _ = quantize_layers(case.trained(case.seeds[0]), weight_quantizer("int4"))
    x = spikes(case)
    with torch.no_grad(), sbc_mode(model) as sbc:
        for _ in range(sbc.num_layers):
            sbc.model(x)
            sbc.update()
    return model.eval()


def by_backend(case: Case) -> nn.Module:
    """The trained network through ``compress(..., backend="brevitas")``."""
    settings = {"quantize": Quantize(4), "calibration": Calibration(tuning=0), "progress": False}
    return compress(case.trained(case.seeds[0]), [spikes(case)], backend="brevitas", **settings)[0].eval()


WAYS: dict[str, Callable[[Case], nn.Module]] = {"`sbc_mode`": by_mode, '`backend="brevitas"`': by_backend}


def _step(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    return run_steps(export_onnx(model, path, x), x)


def _whole(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    return run_whole(export_onnx(model, path, x, steps=len(x)), x)


def _qonnx(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    return run_qonnx(export_onnx(model, path, x, steps=len(x), kind="qonnx"), x)


def _torch_qcdq(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    found: Tensor = torch.jit.load(str(export_torchscript(model, path, x)))(x)
    return found


def _exported(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    torch.export.save(torch.export.export(model, (x,), strict=False), path)
    found: Tensor = torch.export.load(path).module()(x)
    return found


def _frozen(model: nn.Module, x: Tensor, path: Path) -> Tensor:
    return _exported(freeze(model), x, path)


FORMS: dict[str, tuple[Callable[[nn.Module, Tensor, Path], Tensor], str]] = {
    "QCDQ, one step": (_step, "a.onnx"),
    "QCDQ, whole": (_whole, "a.onnx"),
    "QONNX": (_qonnx, "a.onnx"),
    "torch QCDQ": (_torch_qcdq, "a.pt"),
    "torch.export": (_exported, "a.pt2"),
    "torch.export of `freeze`": (_frozen, "a.pt2"),
}


def word(form: str, model: nn.Module, x: Tensor) -> str:
    """What becomes of a model in one form: "equal", how much it differs, or why it is refused."""
    export, name = FORMS[form]
    before = copy.deepcopy(model.state_dict())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = model(x)
        try:
            found = export(model, x, Path(folder) / name)
        except CompressionError as error:
            first = re.split(r"; ", str(error))[0]
            return f"refused: {first}"
        unchanged = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert unchanged and torch.equal(model(x), expected)
    assert expected.any()
    return compared(found, expected)


def compared(found: Tensor, expected: Tensor) -> str:
    """Whether two outputs are the same up to the rounding of float32."""
    worst = float((found - expected).abs().max() / expected.abs().max())
    return "equal" if found.shape == expected.shape and worst <= ROUNDING else f"differs by {worst:.1g}"


def rows(names: Sequence[str] = tuple(CASES_BY_NAME), ways: Sequence[str] = tuple(WAYS)) -> list[list[str]]:
    """Of each network, a row for each way to quantise it."""
    found = []
    for case in (CASES_BY_NAME[name] for name in names):
        for way in ways:
            model = WAYS[way](case)
            found.append([case.name, way, *(word(form, model, spikes(case)) for form in FORMS)])
    return found


def table() -> str:
    """The table in Markdown."""
    return markdown(["network", "quantised by", *FORMS], rows())


def shown() -> str:
    """The table that stands in the page."""
    return PAGE.read_text().partition(START)[2].partition(END)[0].strip()


def main() -> None:
    """Measure, and put the table into the page."""
    torch.set_num_threads(1)
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
