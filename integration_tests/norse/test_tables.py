"""The tables of docs/hosts.md are those that a run gives, and every class that they name is exported."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from integration_tests.norse import class_table, model_table, norses_models, tables
from sbc_plugin import Calibration, Prune, compress
from sbc_plugin.errors import UnsupportedModelError


def test_the_table_of_classes_is_the_measured_one() -> None:
    assert tables.shown("classes") == class_table.table()


def test_every_exported_neuron_has_a_row_and_none_is_wrong() -> None:
    text = tables.shown("classes")
    kinds = SNN | SNNCell | SNNRecurrent | SNNRecurrentCell
    neurons = [
        name
        for name in dir(norse)
        if isinstance(getattr(norse, name), type) and issubclass(getattr(norse, name), kinds)
    ]
    assert len(neurons) == 34 and all(f"| `{name}` |" in text for name in neurons)
    assert "wrong" not in text and "wrong" not in tables.shown("models")
    assert all(shipped.name in tables.shown("models") for shipped in norses_models.models())


@pytest.mark.hosts
def test_the_table_of_models_is_the_measured_one() -> None:
    assert tables.shown("models") == model_table.table()


class Encoded(nn.Module):
    """An encoder before the layers."""

    def __init__(self, encoder: nn.Module, inputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = encoder
        self.chain = norse.SequentialState(nn.Linear(inputs, 6), norse.LIF(), nn.Linear(6, 3), norse.LI())
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(self.encoder(x))[0]  # type: ignore[no-any-return]


ENCODERS: dict[str, tuple[Any, Any]] = {
    "ConstantCurrentLIFEncoder": (norse.ConstantCurrentLIFEncoder(20), 20 * torch.rand(4, 5)),
    "PoissonEncoder": (norse.PoissonEncoder(20, f_max=900), torch.rand(4, 5)),
    "SignedPoissonEncoder": (norse.SignedPoissonEncoder(20, f_max=900), torch.rand(4, 5)),
    "SpikeLatencyLIFEncoder": (norse.SpikeLatencyLIFEncoder(20), 20 * torch.rand(4, 5)),
    "SpikeLatencyEncoder": (norse.SpikeLatencyEncoder(), (torch.rand(20, 4, 5) < 0.3).float()),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_stay_as_they_are(name: str) -> None:
    encoder, x = ENCODERS[name]
    small, report = compress(Encoded(encoder, 5), [x], prune=Prune(0.5), calibration=Calibration(tuning=0))
    assert [layer.name for layer in report.layers] == ["chain.0", "chain.2"] and not report.skipped
    weights = torch.cat([small.get_submodule(layer.name).weight.flatten() for layer in report.layers])
    assert float((weights == 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_cell_without_a_step_that_can_be_seen_is_named() -> None:
    model = norse.SequentialState(norse.CobaLIFCell(5, 6))
    with pytest.raises(UnsupportedModelError, match=r"no spiking Norse neuron .*CobaLIFCell"):
        compress(model, [torch.rand(5, 3, 5)], prune=Prune(0.5))
