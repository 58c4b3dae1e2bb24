"""``norse.torch.from_nir`` makes layers whose attributes are not their weights' sizes; nothing may read those."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nir
import numpy
import pytest
import torch
from norse.torch.functional.reset import reset_value
from torch import Tensor, nn

from integration_tests.models import nir_graphs
from integration_tests.models.networks import imported
from sbc_plugin import Calibration, Prune, Quantize, compress
from sbc_plugin.nir import read, write

DT = nir_graphs.DT
QUICK = Calibration(tuning=0)


def cuba(*shape: int, seed: int = 0) -> Any:
    """What Norse's import keeps of CubaLIF: it drops resistance, leak and reset."""
    ones, zeros = numpy.ones(shape), numpy.zeros(shape)
    return replace(nir_graphs.cuba(*shape, seed=seed), r=ones, v_leak=zeros, v_reset=zeros)


NEURONS: dict[str, Callable[..., Any]] = {
    "LIF": lambda *shape, seed=0: nir_graphs.lif(*shape, seed=seed, plain=True),
    "IF": lambda *shape, seed=0: nir_graphs.integrate_and_fire(*shape, seed=seed, plain=True),
    "CubaLIF": cuba,
}


def grouped(neuron: Callable[..., Any]) -> Any:
    """Two convolutions, the second one in two groups."""
    zeros, weight = numpy.zeros(6, numpy.float32), nir_graphs.weight
    conv1 = nir.Conv2d((5, 5), weight(0, 4, 2, 3, 3), 1, 0, 1, 1, zeros[:4])
    conv2 = nir.Conv2d((3, 3), weight(1, 6, 2, 3, 3), 1, 1, 1, 2, zeros)
    nodes = {"conv1": conv1, "n1": neuron(4, 3, 3, seed=2), "conv2": conv2, "n2": neuron(6, 3, 3, seed=3)}
    return nir_graphs.chain((2, 5, 5), (6, 3, 3), **nodes)


FORMS: dict[str, Callable[[Any], Any]] = {
    "chain": nir_graphs.dense,
    "recurrent": nir_graphs.recurrent,
    "grouped convolution": grouped,
    "nested": lambda neuron: nir_graphs.recurrent(neuron, nested=True),
}


def both(neuron: str, form: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The same graph as we read it and as Norse does, and spikes (T, B, ...)."""
    graph = FORMS[form](NEURONS[neuron])
    ours, theirs = read(graph, dt=DT), imported(graph, dt=DT, reset_method=reset_value)
    x = nir_graphs.spikes((2, 5, 5) if form == "grouped convolution" else (5,), batch=16)
    assert torch.equal(nir_graphs.run(ours, x), nir_graphs.run(theirs, x))
    return ours, theirs, x


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.replace(".", "_"): value for name, value in model.named_parameters() if value.dim() > 1}


def test_norse_swaps_the_attributes() -> None:
    fc2 = both("LIF", "chain")[1].get_submodule("fc2")
    assert isinstance(fc2, nn.Linear) and fc2.weight.shape == (4, 6)
    assert (fc2.in_features, fc2.out_features) == (4, 6)
    conv2 = both("LIF", "grouped convolution")[1].get_submodule("conv2")
    assert isinstance(conv2, nn.Conv2d) and conv2.weight.shape == (6, 2, 3, 3)
    assert (conv2.in_channels, conv2.groups) == (2, 2)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{"prune": Prune(0.5)}, {"prune": Prune(0.4), "quantize": Quantize(4)}], ids=str)
def test_the_same_file_gives_the_same_compressed_weights(neuron: str, form: str, settings: Any) -> None:
    ours, theirs, x = both(neuron, form)
    expected, report = compress(ours, [x], calibration=QUICK, **settings)
    found, other = compress(theirs, [x], calibration=QUICK, **settings)
    assert {r.kind for r in report.layers} == {r.kind for r in other.layers} and report.skipped == other.skipped
    wanted, got = weights(expected), weights(found)
    assert wanted.keys() == got.keys() and any(bool((value == 0).any()) for value in got.values())
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_what_norse_imported_goes_to_brevitas_and_back_to_a_file(form: str, tmp_path: Any) -> None:
    _, theirs, x = both("LIF", form)
    quantised, _ = compress(theirs, [x], quantize=Quantize(4), calibration=QUICK, backend="brevitas")
    plain, _ = compress(theirs, [x], quantize=Quantize(4), calibration=QUICK)
    assert torch.equal(nir_graphs.run(quantised, x), nir_graphs.run(plain, x))
    write(tmp_path / "a.nir", plain, input_shape=tuple(x.shape[2:]))
    again = read(tmp_path / "a.nir", dt=DT)
    assert torch.equal(nir_graphs.run(again, x), nir_graphs.run(plain, x))
