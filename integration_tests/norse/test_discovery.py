"""Which neuron integrates each weight: one expectation a model, and the reasons for what is left out."""

import norse.torch as norse
import pytest
import torch
from torch import nn

from integration_tests.models.cases import CASES
from integration_tests.models.networks import Case, braille
from sbc_plugin.errors import UnsupportedModelError
from sbc_plugin.norse import find_layers


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    result = request.param
    assert isinstance(result, Case)
    return result


def test_layers_kernels_and_sites(case: Case) -> None:
    layers, skipped = find_layers(case.model(), case.batch(), case.forward)
    found = [
        (layer.name, layer.kind, layer.kernel.name, " ".join(site.layout for site in layer.sites)) for layer in layers
    ]
    assert found == [(wanted.name, wanted.kind, wanted.kernel, wanted.layouts) for wanted in case.layers]
    for layer, wanted in zip(layers, case.layers, strict=True):
        assert wanted.note in layer.note and bool(layer.note) == bool(wanted.note)
    assert skipped == {}


def test_the_networks_are_alive(case: Case) -> None:
    """An oracle on silent layers would compare 0 with 0."""
    output = case.output(case.model(), case.batch())
    assert output.isfinite().all() and output.count_nonzero() > 0


def test_the_real_recurrent_net() -> None:
    model = braille()
    if model is None:
        pytest.skip("the developers' data is not here; set SBC_DATA to its folder")
    layers, skipped = find_layers(model, (torch.rand(5, 2, 12) < 0.3).float())
    assert [(layer.name, layer.rows, layer.columns, layer.note) for layer in layers] == [
        ("fc1 + lif1_w_rec", 38, 12 + 38, ""),
        ("fc2", 7, 38, ""),
    ]
    assert [layer.kernel.name for layer in layers] == ["lif_box > lif_box"] * 2 and skipped == {}


def test_sequences_of_which_one_reaches_no_neuron_are_refused() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.lif = nn.Linear(4, 3), norse.LIF()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.lif(self.linear(x))[0], self.linear(2 * x)

    with pytest.raises(UnsupportedModelError, match="layer 'linear': some of its calls hold whole sequences"):
        find_layers(Auxiliary(), torch.ones(5, 2, 4))
