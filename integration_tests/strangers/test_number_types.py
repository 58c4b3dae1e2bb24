"""Number types, layouts and devices that a stranger's model or data may have: served, or refused with the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import numpy
import pytest
import torch
from norse.torch import LIFBoxCell, SequentialState
from torch import Tensor, nn

from sbc_plugin import (
    Calibration,
    Prune,
    Quantize,
    accuracy,
    calibrate,
    compare,
    compress,
    evaluate,
    inspect,
    load,
    record_spikes,
    save,
)
from sbc_plugin.errors import CalibrationError, CompressionError, UnsupportedModelError
from sbc_plugin.nir import read, write
from sbc_plugin.norse import record_states

HALVES = (torch.bfloat16, torch.float16)
WITHOUT = Calibration(tuning=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(10, 8, bias=False), LIFBoxCell(), nn.Linear(8, 12), LIFBoxCell(), nn.Linear(12, 4)
    model = SequentialState(*layers, norse.LICell())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(8 if parameter.dim() > 1 else 1)
    return model


SPIKES = torch.rand(10, 8, 10, generator=torch.Generator().manual_seed(1)) < 0.5
LABELS = torch.arange(8) % 4


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.dim() > 1]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "settings",
    [
        {"prune": Prune(0.5)},
        {"prune": Prune(0.5), "quantize": Quantize(4)},
        {"quantize": Quantize(2)},
        {"prune": Prune(0.5), "calibration": Calibration(order="sequential", align=True, tuning=20)},
        {"quantize": Quantize(4), "backend": "brevitas", "calibration": WITHOUT},
    ],
)
def test_a_model_in_half_precision_is_compressed_in_it(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    model = network().to(dtype)
    data = [(SPIKES.float(), LABELS)]
    small, _ = compress(model, data, progress=False, **settings)
    assert all(weight.dtype == dtype and weight.isfinite().all() for weight in weights(small))
    if "prune" in settings:
        zeros = sum(int((weight == 0).sum()) for weight in weights(small))
        assert zeros == round(0.5 * sum(weight.numel() for weight in weights(model)))
    assert compare(model, small, data).distance < 0.3
    assert accuracy(small, data) >= 0


@pytest.mark.parametrize("dtype", HALVES)
def test_hessians_and_solutions_are_those_of_single_precision(dtype: torch.dtype) -> None:
    """The first layer: its input is spikes, so its Hessian is equal, and its weights are apart by rounding alone."""
    half, single = network().to(dtype), network().to(dtype).float()
    data = [SPIKES.float()]
    ours, theirs = calibrate(half, data)["0"].hessian(), calibrate(single, data)["0"].hessian()
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    settings: dict[str, Any] = {"prune": Prune(0.5, allocation="uniform"), "calibration": WITHOUT, "progress": False}
    found, wanted = (compress(model, data, **settings)[0][0].weight for model in (half, single))
    torch.testing.assert_close(found.float(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    assert torch.equal(found == 0, wanted == 0)


@pytest.mark.parametrize("dtype", HALVES)
def test_files_hold_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = network().to(dtype)
    small, report = compress(model, [SPIKES.float()], prune=Prune(0.5), calibration=WITHOUT, progress=False)
    save(tmp_path / "small.safetensors", small, report)
    again, _ = load(tmp_path / "small.safetensors", network().to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), small.parameters(), strict=True))
    write(tmp_path / "small.nir", small)  # NIR's numbers are float32, which holds all of half precision
    nodes = nir.read(tmp_path / "small.nir").nodes
    stored = [node.weight for node in nodes.values() if hasattr(node, "weight")]
    assert all(weight.dtype == numpy.float32 for weight in stored)
    for weight, own in zip(stored, weights(small), strict=True):
        assert torch.equal(torch.from_numpy(weight), own.float())
    assert all(
        torch.equal(a, b.float()) for a, b in zip(weights(read(tmp_path / "small.nir")), weights(small), strict=True)
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("neuron", [norse.LIFCell, norse.LIF, norse.LIFRecurrentCell])
def test_a_model_that_its_host_does_not_run_in_half_precision_says_what_to_do(
    dtype: torch.dtype, neuron: Callable[..., nn.Module]
) -> None:
    inner = neuron(10, 8) if neuron is norse.LIFRecurrentCell else neuron()
    size = 8 if neuron is norse.LIFRecurrentCell else 10
    model = SequentialState(inner, nn.Linear(size, 4), LIFBoxCell()).to(dtype)
    with pytest.raises(RuntimeError, match="dtype"):
        model(SPIKES.to(dtype) if neuron is norse.LIF else SPIKES[0].to(dtype))
    with pytest.raises(UnsupportedModelError, match=r"does not run in torch\..*model\.float\(\)"):
        compress(model, [SPIKES.float()], prune=Prune(0.5), progress=False)


INPUTS: dict[str, Callable[[], Tensor]] = {
    "uint8": lambda: SPIKES.byte(),
    "bool": lambda: SPIKES,
    "int64": lambda: SPIKES.long(),
    "int16": lambda: SPIKES.short(),
    "float16": lambda: SPIKES.half(),
    "float64": lambda: SPIKES.double(),
    "float8": lambda: SPIKES.float().to(torch.float8_e4m3fn),
    "sparse": lambda: SPIKES.float().to_sparse(),
    "sparse bytes": lambda: SPIKES.byte().to_sparse(),
    "sparse, not coalesced": lambda: _twice(SPIKES.float().to_sparse()),
    "hybrid": lambda: SPIKES.float().to_sparse(2),
    "inference": lambda: _in_inference(),
    "not contiguous": lambda: SPIKES.float().transpose(0, 1).contiguous().transpose(0, 1),
}


def _twice(x: Tensor) -> Tensor:
    """The same values as sums of two halves at one place."""
    indices, values = torch.cat([x.indices()] * 2, 1), torch.cat([x.values() / 2] * 2)
    return torch.sparse_coo_tensor(indices, values, x.shape, check_invariants=True)


def _in_inference() -> Tensor:
    with torch.inference_mode():
        return SPIKES.float()


def outcomes(x: Tensor) -> list[Any]:
    """What every function that takes data says of it."""
    model, data = network(), [(x, LABELS)]
    small, report = compress(model, data, prune=Prune(0.5), calibration=Calibration(tuning=3), progress=False)
    return [
        [weight.tolist() for weight in weights(small)],
        [layer.loss for layer in report.layers],
        compare(model, small, data).distance,
        compare(record_spikes(model, data), small, data).distance,
        accuracy(small, data),
        evaluate(model, small, data).accuracy,
        [layer.columns for layer in inspect(model, data).layers],
        calibrate(model, data)["0"].hessian().tolist(),
    ]


@pytest.mark.parametrize("kind", INPUTS)
def test_spikes_of_any_type_and_layout_are_the_same_spikes(kind: str) -> None:
    assert outcomes(INPUTS[kind]()) == outcomes(SPIKES.float())


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "complex64": (lambda: SPIKES.to(torch.complex64), "imaginary part.*view_as_real"),
    "complex128": (lambda: SPIKES.to(torch.complex128), "imaginary part.*view_as_real"),
    "complex, sparse": (lambda: SPIKES.to(torch.complex64).to_sparse(), "imaginary part"),
    "complex NaN": (lambda: SPIKES.to(torch.complex64) * complex("nan"), "NaN"),
    "nested": (lambda: torch.nested.nested_tensor([torch.rand(9, 10), torch.rand(7, 10)]), "pad its sequences"),
    "meta": (lambda: SPIKES.float().to("meta"), "no values"),
    "sparse infinity": (lambda: (SPIKES.float() / 0).nan_to_num(0, posinf=torch.inf).to_sparse(), "infinity"),
    "float8 NaN": (lambda: torch.full((4, 2, 10), torch.nan).to(torch.float8_e4m3fn), "NaN"),
}
CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "compress": lambda model, data: compress(model, data, prune=Prune(0.5), progress=False),
    "calibrate": calibrate,
    "compare": lambda model, data: compare(model, model, data),
    "accuracy": accuracy,
    "inspect": inspect,
    "record_states": lambda model, data: record_states(model, data[0]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", REFUSED)
def test_input_that_is_no_real_numbers_is_refused(kind: str, call: str) -> None:
    make, message = REFUSED[kind]
    if call == "record_states" and message in ("NaN", "infinity", "no values"):
        pytest.skip("it looks at a single batch, and at nothing but its states")
    with pytest.raises(CalibrationError, match=message):
        CALLS[call](network(), [(make(), LABELS)])


def test_a_forward_of_ones_own_may_take_complex_input() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        state, outputs = None, []
        for step in batch[0].abs():
            output, state = model(step, state)
            outputs.append(output)
        return torch.stack(outputs)

    data = [(SPIKES.to(torch.complex64) * 1j, LABELS)]
    small, _ = compress(network(), data, prune=Prune(0.5), forward=forward, calibration=WITHOUT, progress=False)
    plain, _ = compress(network(), [SPIKES.float()], prune=Prune(0.5), calibration=WITHOUT, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(weights(small), weights(plain), strict=True))


def meta() -> nn.Module:
    with torch.device("meta"):
        return SequentialState(nn.Linear(10, 4), LIFBoxCell())


def half_meta() -> nn.Module:
    model = network()
    model[2].to("meta")
    return model


def meta_buffer() -> nn.Module:
    model = SequentialState(nn.Linear(10, 4), nn.BatchNorm1d(4), LIFBoxCell())
    model[1].running_mean = model[1].running_mean.to("meta")
    return model


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", [meta, half_meta, meta_buffer])
def test_a_model_without_values_is_refused(make: Callable[[], nn.Module], call: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"meta device.*to_empty"):
        CALLS[call](make(), [(SPIKES.float(), LABELS)])


@pytest.mark.parametrize("make", [meta, half_meta])
def test_files_of_a_model_without_values_are_refused(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="meta device"):
        write(tmp_path / "a.nir", make())
    with pytest.raises(CompressionError, match="meta"):
        save(tmp_path / "a.safetensors", make())
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model_has_to_run_first() -> None:
    model = SequentialState(nn.LazyLinear(4), LIFBoxCell())
    with pytest.raises(UnsupportedModelError, match="no shape before the model has run"):
        inspect(model, [SPIKES.float()])
    model(SPIKES[0].float())
    assert [layer.columns for layer in inspect(model, [SPIKES.float()]).layers] == [10]


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_around_a_call_changes_nothing_and_is_told(dtype: torch.dtype) -> None:
    plain = outcomes(SPIKES.float())
    with torch.autocast("cpu", dtype):
        assert outcomes(SPIKES.float()) == plain
        assert torch.is_autocast_enabled("cpu")
        _, report = compress(network(), [SPIKES.float()], prune=Prune(0.5), calibration=WITHOUT, progress=False)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert "switched off" in report.skipped["autocast"] and "cpu" in report.skipped["autocast"]
    _, report = compress(network(), [SPIKES.float()], prune=Prune(0.5), calibration=WITHOUT, progress=False)
    assert "autocast" not in report.skipped


class Functional(nn.Module):
    """Steps of Norse called by hand: nothing of them is a module."""

    def __init__(self, readout: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.readout = nn.Linear(10, 4), readout or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        from norse.torch.functional import lif_feed_forward_step

        state, outputs = None, []
        for step in x:
            spikes, state = lif_feed_forward_step(self.fc(step), state)
            outputs.append(spikes)
        return torch.stack(outputs)


@pytest.mark.parametrize("readout", [None, norse.LICell()])
def test_steps_called_by_hand_have_to_be_cells(readout: nn.Module | None) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Neurons have to be modules|neurons have to be modules"):
        compress(Functional(readout), [SPIKES.float()], prune=Prune(0.5), progress=False)
