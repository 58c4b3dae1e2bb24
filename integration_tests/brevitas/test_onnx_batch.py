"""Files take any number of sequences where a model merges time and batch, and takes them apart again."""

from pathlib import Path

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("brevitas.nn")
pytest.importorskip("onnx")
pytest.importorskip("qonnx")

from integration_tests.models.onnx_running import run_whole
from sbc_plugin.brevitas import export_onnx, quantize_layers, weight_quantizer
from sbc_plugin.brevitas.onnx_batch import free_reshapes

INT4 = weight_quantizer("int4", scale="power_of_two")
STEPS = 3


class Unflattened(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class FromTheBack(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = super().forward(x.flatten(0, 1))
        return y.unflatten(-y.dim(), (x.shape[0], x.shape[1]))


class Reshaped(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = super().forward(x.reshape(-1, *x.shape[2:]))
        return y.reshape(x.shape[0], x.shape[1], *y.shape[1:])


class Viewed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = super().forward(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:])


class Neuron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = norse.Lift(norse.LIFBoxCell())

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.lift(x)[0]
        return spikes


def merging(kind: type[nn.Sequential]) -> nn.Module:
    """Two layers that merge, with only a neuron or nothing but another of them in between."""
    torch.manual_seed(0)
    model = nn.Sequential(
        kind(nn.Conv2d(2, 4, 3)), Neuron(), kind(nn.MaxPool2d(2)), kind(nn.Conv2d(4, 4, 2), nn.Flatten()), Neuron(),
        kind(nn.Linear(16, 5)), Neuron(),
    )  # fmt: skip
    for weight in model.parameters():
        weight.data *= 150
    return quantize_layers(model, INT4)[0].eval()


def spikes(batch: int, seed: int = 0) -> Tensor:
    return (torch.rand(STEPS, batch, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


@pytest.mark.parametrize("kind", [Unflattened, FromTheBack, Reshaped, Viewed])
@pytest.mark.parametrize("batch", [1, 2, STEPS])
def test_the_number_of_sequences_stays_free(kind: type[nn.Sequential], batch: int, tmp_path: Path) -> None:
    model, x = merging(kind), spikes(7, seed=1)
    exported = export_onnx(model, tmp_path / "a.onnx", spikes(batch), steps=STEPS)
    expected = model(x).detach()
    assert 0.02 < float(expected.mean()) < 0.98
    torch.testing.assert_close(run_whole(exported, x), expected, rtol=1e-5, atol=1e-6)


def test_files_of_other_graphs_stay_as_they_are(tmp_path: Path) -> None:
    first, second = (
        export_onnx(merging(kind), tmp_path / f"{kind.__name__}.onnx", spikes(2), steps=steps).path
        for kind, steps in ((Unflattened, STEPS), (Viewed, 2))
    )
    before = first.read_bytes()
    free_reshapes(first, second)
    assert first.read_bytes() == before
