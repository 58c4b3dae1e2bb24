"""What a forward leaves in a model is no state: it is not saved, and a file is read without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from sbc_plugin import load, save
from sbc_plugin.errors import CheckpointError


class Recording(nn.Module):
    """Keeps something of its last forward."""

    def __init__(self, keep: Callable[["Recording", Tensor, Any], None]) -> None:
        super().__init__()
        self.inp, self.lif, self.out = nn.Linear(6, 5), norse.LIFCell(), nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.keep = keep

    def forward(self, x: Tensor, state: Any = None) -> Any:
        spikes, state = self.lif(10 * self.inp(x), state)
        self.keep(self, spikes, state)
        self.seen += 1
        return self.out(spikes), state


def keep_spikes(model: Recording, spikes: Tensor, state: Any) -> None:
    model.spk = spikes


def keep_rate(model: Recording, spikes: Tensor, state: Any) -> None:
    model.rate, model.mean = spikes.mean(), float(spikes.mean())


def keep_state(model: Recording, spikes: Tensor, state: Any) -> None:
    model.state = state


def keep_in_the_neuron(model: Recording, spikes: Tensor, state: Any) -> None:
    model.lif.spk, model.lif.last = spikes, state


def keep_lists(model: Recording, spikes: Tensor, state: Any) -> None:
    model.recorded, model.by_name = [spikes], {"spikes": spikes}


KEEPING = (keep_spikes, keep_rate, keep_state, keep_in_the_neuron, keep_lists)


def outputs(model: nn.Module) -> Tensor:
    x, state, seen = torch.ones(4, 3, 6), None, []
    with torch.no_grad():
        for step in x:
            output, state = model(step, state)
            seen.append(output)
    return torch.stack(seen)


@pytest.mark.parametrize("keep", KEEPING)
def test_what_a_forward_leaves_is_not_asked_for(keep: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, fresh, ran = Recording(keep), Recording(keep), Recording(keep)
    model.lif.p = model.lif.p._replace(v_th=torch.full((5,), 0.3))
    outputs(model)
    outputs(ran)
    save(tmp_path / "a.safetensors", model)
    expected = outputs(model)
    for other in (fresh, ran):
        load(tmp_path / "a.safetensors", other)
        assert torch.equal(other.lif.p.v_th, model.lif.p.v_th) and other.seen == 4
        assert torch.equal(outputs(other), expected)


def test_recorded_tensors_take_no_space(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recording(keep_spikes)
    save(tmp_path / "before.safetensors", model)
    outputs(model)
    model.spk, model.lif.spk = torch.rand(50, 100, 40), torch.rand(50, 100, 40)
    save(tmp_path / "after.safetensors", model)
    before, after = (tmp_path / f"{name}.safetensors" for name in ("before", "after"))
    assert abs(after.stat().st_size - before.stat().st_size) < 50
    assert load(after).attributes.keys() == load(before).attributes.keys()


def test_files_that_hold_recorded_tensors_are_read(tmp_path: Path) -> None:
    """As files of earlier versions do."""

    class Given(Recording):
        def __init__(self, keep: Any, spk: Tensor | None = None) -> None:
            super().__init__(keep)
            if spk is not None:
                self.spk = spk

    save(tmp_path / "a.safetensors", Given(keep_lists, torch.rand(3, 5)))
    assert "::" not in str(load(tmp_path / "a.safetensors").attributes) and load(tmp_path / "a.safetensors").attributes
    load(tmp_path / "a.safetensors", Recording(keep_lists))


def test_weights_that_a_library_is_constructed_with_are_state(tmp_path: Path) -> None:
    """Norse's recurrent cells keep weights that they are given as plain tensors."""

    def made(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        given = {"input_weights": torch.rand(5, 6, generator=generator), "recurrent_weights": torch.rand(5, 5)}
        return norse.SequentialState(norse.LIFRecurrentCell(6, 5, **given), nn.Linear(5, 2))

    model, other = made(1), made(2)
    save(tmp_path / "a.safetensors", model)
    load(tmp_path / "a.safetensors", other)
    for name in ("input_weights", "recurrent_weights"):
        assert name not in dict(model[0].named_parameters())  # type: ignore[index]
        assert torch.equal(getattr(other[0], name), getattr(model[0], name))  # type: ignore[index]
    assert torch.equal(outputs(other), outputs(model))


def test_parameters_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", norse.SequentialState(nn.Linear(6, 5), norse.LIFCell()))
    other = norse.SequentialState(nn.Linear(6, 5), norse.LIFCell())
    other[1].p = None
    with pytest.raises(CheckpointError, match="layer '1': the file has 'p', this model has not"):
        load(tmp_path / "a.safetensors", other)
