"""Weights that are not torch's Linear or convolution: the same result as with those, or told why not."""

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.networks import BOX, LI, LIF
from sbc_plugin import Calibration, Prune, Quantize, compare, compress, load, save
from sbc_plugin.nir import read, write
from sbc_plugin.norse import default_forward, find_layers, quantize_membranes, record_states, restore_membranes

T, B = 8, 12
QUICK = Calibration(tuning=0)
SETTINGS: list[dict[str, Any]] = [
    {"prune": Prune(0.5), "calibration": QUICK},
    {"prune": Prune(0.4), "quantize": Quantize(4), "calibration": QUICK},
    {"prune": Prune(0.5), "calibration": Calibration(order="sequential", tuning=0)},
    {"prune": Prune(0.5), "calibration": Calibration(align=True, tuning=3)},
    {"prune": Prune(0.5), "method": "magnitude"},
]


def spikes(*shape: int) -> Tensor:
    return (torch.rand((T, B, *shape), generator=torch.Generator().manual_seed(0)) < 0.4).float()


def lively(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 3 / parameter[0].numel() ** 0.5 + 0.1)
    return model


def run(model: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = default_forward(model, x)(model, x)
    return result


def readouts() -> tuple[Any, Any]:
    """A readout with weights of its own, and Linear before a plain readout."""
    one = lively(norse.SequentialState(nn.Linear(10, 14), norse.LIFCell(LIF), norse.LILinearCell(14, 5, LI)))
    other = norse.SequentialState(nn.Linear(10, 14), norse.LIFCell(LIF), nn.Linear(14, 5, bias=False), norse.LICell(LI))
    other.load_state_dict(
        {name.replace("2.input_weights", "2.weight"): value for name, value in one.state_dict().items()}
    )
    return one, other


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_readout_with_weights_is_linear_and_readout(settings: Any) -> None:
    (one, other), x = readouts(), spikes(10)
    assert torch.equal(run(one, x), run(other, x))
    small, report = compress(one, [x], **settings)
    expected, wanted = compress(other, [x], **settings)
    # Steps of tuning are as long for a gradient of almost 0, whose sign may be rounding's.
    close = {"rtol": 1e-3, "atol": 1e-3} if "calibration" in settings else {}
    torch.testing.assert_close(small[2].input_weights, expected[2].weight, **close)
    torch.testing.assert_close(small[0].weight, expected[0].weight, **close)
    assert report.sparsity == wanted.sparsity and report.left_alone == 0
    mine, theirs = compare(one, small, [x]), compare(other, expected, [x])
    assert mine.compressed == theirs.compressed and mine.dense == theirs.dense


def test_a_readout_with_weights_in_files_states_and_membranes(tmp_path: Any) -> None:
    (one, other), x = readouts(), spikes(10)
    small, report = compress(one, [x], prune=Prune(0.4), quantize=Quantize(4), calibration=QUICK)
    write(tmp_path / "a.nir", small, codes=True)
    assert torch.equal(run(read(tmp_path / "a.nir", dt=1e-3), x), run(small, x))
    save(tmp_path / "a.safetensors", small, report)
    again, _ = load(tmp_path / "a.safetensors", readouts()[0])
    assert torch.equal(run(again, x), run(small, x))
    records, expected = record_states(one, x), record_states(other, x)
    assert torch.equal(records["2"].spikes, expected["3"].spikes)
    assert torch.equal(records["2"].input, records["1"].spikes)
    rounded, _ = quantize_membranes(one, 8, calibration_data=[x])
    wanted, _ = quantize_membranes(other, 8, calibration_data=[x])
    assert torch.equal(run(rounded, x), run(wanted, x)) and not torch.equal(run(rounded, x), run(one, x))
    assert torch.equal(run(restore_membranes(rounded), x), run(one, x))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_convolution_pointwise_in_time_is_one_of_each_step(settings: Any) -> None:
    def layers(first: nn.Module, second: nn.Module) -> Any:
        return norse.SequentialState(first, norse.LIF(LIF), second, norse.LIF(LIF))

    conv: Callable[..., Any] = nn.Conv2d
    one = lively(layers(norse.LConv2d(2, 4, 3, 2, 1, groups=2), norse.LConv2d(4, 3, (2, 1))))
    settings_of_first = {"stride": 2, "padding": 1, "groups": 2, "bias": False}
    other = layers(norse.Lift(conv(2, 4, 3, **settings_of_first)), norse.Lift(conv(4, 3, (2, 1), bias=False)))
    other[0].lifted_module.weight.data = one[0].weight.detach()[..., 0].clone()
    other[2].lifted_module.weight.data = one[2].weight.detach()[..., 0].clone()
    x = spikes(2, 6, 6)
    torch.testing.assert_close(run(one, x), run(other, x))
    small, _ = compress(one, [x], **settings)
    expected, _ = compress(other, [x], **settings)
    for layer in (0, 2):
        torch.testing.assert_close(small[layer].weight[..., 0], expected[layer].lifted_module.weight)
    assert compare(one, small, [x]).compressed.operations == compare(other, expected, [x]).compressed.operations


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_transposed_convolution_of_stride_1_is_a_convolution_with_its_kernel_turned(axes: int, settings: Any) -> None:
    transposed: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    plain: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    space, last = tuple(range(2, 2 + axes)), nn.Linear(4, 3)
    one: Any = lively(
        norse.SequentialState(transposed(2, 4, 3, padding=1), norse.LIFBoxCell(BOX), nn.Flatten(2), Mean(), last)
    )
    other: Any = norse.SequentialState(
        plain(2, 4, 3, padding=1), norse.LIFBoxCell(BOX), nn.Flatten(2), Mean(), nn.Linear(4, 3)
    )
    other.load_state_dict(one.state_dict() | {"0.weight": one[0].weight.detach().transpose(0, 1).flip(space)})
    x = spikes(2, *(5, 4, 3)[:axes])
    torch.testing.assert_close(run(one, x), run(other, x))
    small, report = compress(one, [x], **settings)
    expected, wanted = compress(other, [x], **settings)
    if "quantize" in settings:  # codes are chosen column by column, and the turned kernel has them in another order
        for mine, theirs in zip(report.layers, wanted.layers, strict=True):
            assert mine.sparsity == theirs.sparsity and mine.loss == pytest.approx(theirs.loss, rel=0.1)
        return
    torch.testing.assert_close(small[0].weight.transpose(0, 1).flip(space), expected[0].weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(small[4].weight, expected[4].weight)


class Mean(nn.Module):
    """Over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Named(nn.Conv2d):
    """A class of one's own that changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class Doubled(nn.Conv2d):
    """Another shape than its base class gives."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x)] * 2, 1)


@pytest.mark.parametrize("kind", [Standardised, Doubled])
def test_a_subclass_that_computes_something_else_is_left_alone_and_told(kind: Any) -> None:
    model = lively(
        norse.SequentialState(
            kind(2, 4, 3), norse.LIFBoxCell(BOX), nn.Flatten(), nn.Linear(64 * (1 + (kind is Doubled)), 3),
            norse.LIFBoxCell(BOX),
        )
    )  # fmt: skip
    x = spikes(2, 6, 6)
    small, report = compress(model, [x], prune=Prune(0.5), calibration=QUICK)
    assert report.skipped["0"] == f"{kind.__name__} computes something else than the class it comes from"
    assert [layer.name for layer in report.layers] == ["3"] and report.left_alone == 4 * 2 * 9
    assert torch.equal(small.get_submodule("0").weight, model.get_submodule("0").weight)  # type: ignore[arg-type]


def test_a_subclass_that_computes_the_same_is_compressed() -> None:
    def network(kind: Any) -> Any:
        return lively(norse.SequentialState(kind(2, 4, 3), norse.LIFBoxCell(BOX)))

    x = spikes(2, 6, 6)
    small, _ = compress(network(Named), [x], prune=Prune(0.5), calibration=QUICK)
    expected, _ = compress(network(nn.Conv2d), [x], prune=Prune(0.5), calibration=QUICK)
    assert torch.equal(small[0].weight, expected[0].weight)


@pytest.mark.parametrize("kind", [norse.LIFMCRecurrentCell, norse.LIFMCRefracRecurrentCell])
def test_cells_of_several_compartments_are_followed_with_a_note(kind: Any) -> None:
    model = lively(norse.SequentialState(kind(10, 6), nn.Linear(6, 4), norse.LIFCell(LIF)))
    layers, skipped = find_layers(model, spikes(10))
    assert [layer.kind for layer in layers] == [kind.__name__, "Linear > LIFCell"]
    assert layers[0].note == f"{kind.__name__} is not linear below threshold: M = I"
    assert skipped == {"0.g_coupling": f"{kind.__name__} has no rule for it; left as it is"}
    small: Any = compress(model, [spikes(10)], prune=Prune(0.5), calibration=QUICK)[0]
    assert 0.3 < float((small[0].recurrent_weights == 0).double().mean()) < 0.8


@pytest.mark.parametrize("kind", [norse.LIFRecurrentCell, norse.LIFRecurrent, norse.LSNNRecurrentCell])
def test_a_recurrent_layer_alone_is_a_model(kind: Any) -> None:
    model, x = lively(kind(10, 6)), spikes(10)
    whole = lively(norse.SequentialState(kind(10, 6)))
    small, report = compress(model, [x], prune=Prune(0.5), calibration=QUICK)
    expected, _ = compress(whole, [x], prune=Prune(0.5), calibration=QUICK)
    assert all(map(torch.equal, small.parameters(), expected.parameters()))
    assert abs(report.sparsity - 0.5) < 0.02
