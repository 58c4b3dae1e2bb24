"""The integers behind a quantised network: exact codes, and a network of integers alone that sends the same spikes."""

from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import numpy
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.nir_graphs import DT, convolutional, cuba, dense, lif, recurrent, run, spikes
from integration_tests.models.one_shot import compress
from sbc_plugin import Quantize
from sbc_plugin.errors import SettingsError
from sbc_plugin.nir import Network, graph_of, integers, read, write


def quantised(source: Any, bits: int, **settings: Any) -> Network:
    model = read(source, dt=DT)
    compress(model, [spikes(model.input_shape)], quantize=Quantize(bits, **settings), inplace=True)
    return model


def whole(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", ["mse", "power_of_two"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_codes_times_scale_is_the_weight(bits: int, scale: str, granularity: str) -> None:
    model = quantised(convolutional(), bits, scale=scale, granularity=granularity)
    found = integers(model, power_of_two=scale == "power_of_two", granularity=granularity)
    assert list(found) == ["conv1", "conv2", "fc"]
    for name, entry in found.items():
        weight = model.module_of(name).weight.detach().double()  # type: ignore[union-attr, operator]
        assert entry.codes.dtype == torch.int8 and int(entry.codes.abs().max()) < 2 ** (bits - 1)
        again = entry.codes * whole(entry.scale, weight)
        # float32 rounds code * scale; a power of two leaves nothing to round
        torch.testing.assert_close(again, weight, rtol=0 if scale == "power_of_two" else 1e-6, atol=0)
        if scale == "power_of_two":
            assert entry.exponent is not None and torch.equal(entry.scale, 2.0**entry.exponent)
        else:
            assert entry.exponent is None
        if granularity == "tensor":
            assert len(entry.scale.unique()) == 1


def test_a_network_of_integers_sends_the_same_spikes() -> None:
    """Codes for weights, thresholds in units of the scale: every membrane is divided by its row's scale, no more."""
    torch.manual_seed(0)
    box = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(200.0), v_th=torch.tensor(0.4))
    layers = nn.Linear(5, 8), norse.LIFBoxCell(box), nn.Linear(8, 4, bias=False), norse.IAFCell()
    layers[0].weight.data.mul_(4)
    layers[2].weight.data.abs_()
    model = quantised(graph_of(norse.SequentialState(*layers)), 4, scale="power_of_two").double()
    found = integers(model, power_of_two=True)
    x = spikes((5,), 60, 8).double()
    expected = run(model, x)
    assert 0 < expected.mean() < 1
    for weight, neuron in (("0", "1"), ("2", "3")):
        linear, cell, entry = model.module_of(weight), model.module_of(neuron), found[weight]
        assert entry.threshold is not None and entry.threshold.shape == (len(entry.codes),)
        linear.weight.data = entry.codes.double()  # type: ignore[union-attr]
        if entry.bias is not None:
            linear.bias.data = entry.bias  # type: ignore[union-attr]
        cell.p = cell.p._replace(v_th=entry.threshold)  # type: ignore[assignment, union-attr, operator]
    # a power of two changes no mantissa, so not one bit differs
    assert torch.equal(run(model, x), expected)


def test_thresholds_are_those_of_the_neuron_behind() -> None:
    source = convolutional()
    found, nodes = integers(quantised(source, 4)), source.nodes
    conv = found["conv1"]  # a channel serves 64 neurons, each with r of its own
    expected = torch.from_numpy(nodes["lif1"].v_threshold / nodes["lif1"].r).reshape(4, 64) / conv.scale[:, None]
    assert conv.threshold is not None
    torch.testing.assert_close(conv.threshold, expected, rtol=1e-6, atol=0)  # parameters are float32
    last, neuron = found["fc"], nodes["cuba"]
    expected = torch.from_numpy(neuron.v_threshold / neuron.r / neuron.w_in) / last.scale
    assert last.threshold is not None
    torch.testing.assert_close(last.threshold, expected, rtol=1e-6, atol=0)


def test_input_and_recurrent_weights_have_scales_of_their_own() -> None:
    found = integers(quantised(recurrent(cuba), 4))
    first, back = found["fc1"], found["hidden.w_rec"]
    assert first.threshold is not None and back.threshold is not None
    torch.testing.assert_close(first.threshold * first.scale, back.threshold * back.scale)
    assert not torch.equal(first.scale, back.scale)
    cell = norse.SequentialState(norse.LIFRecurrentCell(5, 6), nn.Linear(6, 2), norse.LICell())
    compress(cell, [spikes((5,))], quantize=Quantize(8), inplace=True)
    entries = integers(cell)
    assert list(entries) == ["0.input_weights", "0.recurrent_weights", "1"]
    assert entries["0.input_weights"].threshold is not None and entries["1"].threshold is None


@pytest.mark.parametrize("scale", ["mse", "power_of_two"])
def test_a_file_may_hold_the_integers_beside_the_weights(scale: str, tmp_path: Path) -> None:
    model, power = quantised(recurrent(cuba), 4, scale=scale), scale == "power_of_two"
    write(tmp_path / "a.nir", model, codes=True, power_of_two=power)
    stored = nir.read(tmp_path / "a.nir").nodes
    for name, found in integers(model, power_of_two=power).items():
        node, noted = stored[name], stored[name].metadata
        assert noted["codes"].dtype == numpy.int8 and (noted["codes"] == found.codes.numpy()).all()
        numpy.testing.assert_allclose(noted["codes"] * noted["scale"][:, None], node.weight, rtol=1e-6)
        assert found.threshold is not None and (noted["threshold"] == found.threshold.numpy()).all()
        assert ("exponent" in noted) == power
    assert torch.equal(run(read(tmp_path / "a.nir"), spikes((5,))), run(model, spikes((5,))))
    with pytest.raises(SettingsError, match="give codes=True with it"):
        write(tmp_path / "b.nir", model, power_of_two=True)
    with pytest.raises(SettingsError, match=r"'fc1'.*is not one of 127 multiples"):
        write(tmp_path / "b.nir", read(recurrent(cuba)), codes=True)
    assert not (tmp_path / "b.nir").exists()


def test_weights_that_do_not_fit_are_named_with_a_value() -> None:
    model = read(dense(lif), dt=DT)
    value = float(dense(lif).nodes["fc1"].weight[0, 0])
    with pytest.raises(SettingsError, match=r"layer 'fc1': -?\d.*not one of 127 multiples of one scale a channel"):
        integers(model)
    with pytest.raises(SettingsError, match=rf"'fc1': {value:g} is not .* power of two.*scale='power_of_two'"):
        integers(model, power_of_two=True)
    by_row = quantised(dense(lif), 4)
    with pytest.raises(SettingsError, match=r"one scale a tensor.*granularity='tensor'"):
        integers(by_row, granularity="tensor")
    with pytest.raises(SettingsError, match="granularity='row' is unknown"):
        integers(by_row, granularity="row")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_holds_codes_on_powers_of_two(dtype: torch.dtype) -> None:
    """A refusal says what does it, and it does it."""
    half = read(dense(lif), dt=DT).to(dtype)
    with pytest.raises(SettingsError, match=rf"'fc1': .*{dtype} may have rounded it; .*scale='power_of_two'"):
        integers(half)
    small = quantised(dense(lif), 8, scale="power_of_two").to(dtype)
    found = integers(small)["fc1"]
    assert torch.equal(found.codes * found.scale[:, None], small.get_submodule("fc1").weight.double())


def test_rows_of_zeros_and_powers_of_two() -> None:
    layers = norse.SequentialState(nn.Linear(3, 3, bias=False), norse.LIFBoxCell())
    layers[0].weight.data = torch.tensor([[0.0, 0.0, 0.0], [0.75, -0.5, 0.0], [127.0, 1.0, 0.0]])
    found = integers(layers, power_of_two=True)["0"]
    assert found.codes.tolist() == [[0, 0, 0], [3, -2, 0], [127, 1, 0]]
    assert found.exponent is not None and found.exponent.tolist() == [0, -2, 0]
    layers[0].weight.data[2, 0] = 129.0
    with pytest.raises(SettingsError, match=r"layer '0': (129|1) is not one of 127 multiples of one power of two"):
        integers(layers, power_of_two=True)
