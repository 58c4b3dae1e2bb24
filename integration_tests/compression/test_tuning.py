"""Label-free tuning: what it moves, by how much, what it leaves, and that spikes never go further away."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX
from integration_tests.models.one_shot import compress
from integration_tests.strangers.test_bad_input import Unchanged
from sbc_plugin import Calibration, Prune, Quantize
from sbc_plugin import norse as library
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.compression import objective as aims
from sbc_plugin.compression import tuning
from sbc_plugin.core.spikes import van_rossum_distance
from sbc_plugin.errors import SettingsError, UnsupportedModelError
from sbc_plugin.norse.neurons import is_spiking

PLAIN = Prune(0.6, rounds=1, silent_first=False)  # as without tuning
NAMES = ["step", "conv", "LIFRecurrentCell"]


def tuned(name: str, steps: int, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The same network compressed without tuning, and with it."""
    case = CASES[name]
    data = [case.batch(seed=seed) for seed in range(1, 5)]
    found = [
        compress(case.model(), data, calibration=Calibration(tuning=count), forward=case.forward, **settings)[0]
        for count in (0, steps)
    ]
    return found[0], found[1]


def weights(name: str, model: nn.Module) -> dict[str, Tensor]:
    layers, _ = library.find_layers(model, CASES[name].batch(), CASES[name].forward)
    return {layer.name: layer.weight() for layer in layers}


def total(name: str, model: nn.Module) -> float:
    """The objective on what the calibration used."""
    case = CASES[name]
    runner = Runner.of(case.model(), case.batch(), case.forward)
    wanted = aims.targets(runner, [case.batch(seed=seed) for seed in range(1, 5)], True)
    return aims.mean_distance(Runner.of(model, case.batch(), case.forward), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_spikes_never_go_further_away_and_masks_stay(name: str) -> None:
    before, after = tuned(name, 40, prune=PLAIN)
    assert total(name, after) <= total(name, before)
    for layer, weight in weights(name, before).items():
        assert torch.equal(weight != 0, weights(name, after)[layer] != 0)


def test_steps_that_lead_away_are_taken_back_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "STEP", 1e3)
    case, found = CASES["step"], []
    for steps in (0, 3):
        settings = Calibration(tuning=steps)
        new, report = compress(case.model(), [case.batch()], prune=PLAIN, calibration=settings)
        found.append(list(new.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert "3 steps lowered its objective no further: distance of spikes" in report.skipped["tuning"]


def test_steps_that_lead_far_away_begin_again_and_are_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "LIFRecurrentCell"
    monkeypatch.setattr(tuning, "STEP", 5.0)
    monkeypatch.setattr(tuning, "FAR", 1.0)
    monkeypatch.setattr(tuning, "SHORTER", 0.01)
    before, after = tuned(name, 40, prune=PLAIN)
    assert total(name, after) < 0.95 * total(name, before)
    monkeypatch.setattr(tuning, "PROBED", 1000)
    _, astray = tuned(name, 40, prune=PLAIN)
    assert total(name, after) < total(name, astray)


def test_steps_that_begin_again_move_scales_from_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "FAR", -1.0)  # always
    monkeypatch.setattr(tuning, "SHORTER", 0.0)
    before, after = tuned("conv", 20, quantize=Quantize(3))
    assert all(torch.equal(weight, weights("conv", after)[name]) for name, weight in weights("conv", before).items())


@pytest.mark.parametrize("scale", ["mse", "power_of_two"])
def test_codes_stay_and_scales_move_unless_they_are_powers_of_two(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([1.0, 0.0])  # so that the whole way is kept
    monkeypatch.setattr(tuning, "mean_distance", lambda *arguments: next(found))
    before, after = tuned("conv", 14, quantize=Quantize(3, scale=scale))
    moved = 0.0
    for layer, weight in weights("conv", before).items():
        new = weights("conv", after)[layer]
        kept = weight != 0
        assert torch.equal(kept, new != 0)
        factors = new / weight
        for row, there in zip(factors, kept, strict=True):
            if there.any():
                torch.testing.assert_close(row[there], row[there][:1].expand(int(there.sum())), rtol=1e-5, atol=0.0)
                moved = max(moved, abs(float(row[there][0]) - 1))
    assert moved > 1e-3 if scale == "mse" else moved == 0


def test_a_tuned_model_keeps_its_zeros_and_the_grid_that_is_told() -> None:
    """Pruned, tuned, quantised, tuned: Brevitas' layers, which are told the tuned grids, hold the same weights."""
    case = CASES["conv"]
    data = [case.batch(seed=seed) for seed in range(1, 5)]
    settings = {"prune": Prune(0.6), "quantize": Quantize(4), "calibration": Calibration(tuning=10)}
    plain, report = compress(case.model(), data, forward=case.forward, **settings)
    same, _ = compress(case.model(), data, forward=case.forward, backend="brevitas", **settings)
    assert report.sparsity >= 0.6 and {row.bits for row in report.layers} == {4}
    for a, b in zip(_layers(plain), _layers(same), strict=True):
        torch.testing.assert_close(b.quant_weight().value, a.weight, rtol=1e-6, atol=0.0)


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize(
    ("distances", "part"), [((3, 4, 5, 1), 0.25), ((3, 4, 2), 0.5), ((3, 2), 1.0), ((3, 4, 3, 5), 0.0)]
)
def test_the_longest_part_of_the_way_that_helps_is_kept(
    distances: tuple[float, ...], part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of runs that differ in what is judged lie on one line."""

    def run(judged: tuple[float, ...]) -> Tensor:
        found = iter(judged)
        monkeypatch.setattr(tuning, "mean_distance", lambda *arguments: next(found))
        return weights("step", tuned("step", 5, prune=Prune(0.5))[1])["0"].double()

    start, end = run((0, 1, 1, 1)), run((1, 0))
    assert not torch.equal(start, end)
    torch.testing.assert_close(run(distances), start + part * (end - start), rtol=1e-5, atol=1e-6)


def test_the_first_step_goes_down_the_gradient_by_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step is ``length * sign(gradient)``; the gradient is taken here from a plain loop over time."""
    found = iter([1.0, 0.0])  # so that the whole way is kept
    monkeypatch.setattr(tuning, "mean_distance", lambda *arguments: next(found))
    case = CASES["step"]
    dense, batch = case.model(torch.float64), case.batch(torch.float64)
    small, _ = compress(dense, [batch], prune=Prune(0.5))
    start = [p.detach().clone() for p in small.parameters()]
    layers, _ = library.find_layers(small, batch)
    with torch.enable_grad():
        loss = torch.zeros(())
        trains = [_trains(model, batch) for model in (dense, small)]
        for wanted, spikes in zip(*trains, strict=True):
            scale = van_rossum_distance(wanted, torch.zeros_like(wanted), tau=10.0, dt=1.0).sum().detach()
            loss = loss + van_rossum_distance(spikes, wanted.detach(), tau=10.0, dt=1.0).sum() / scale
        gradients = torch.autograd.grad(loss, list(small.parameters()))
    tuning.tune(Runner.of(small, batch), layers, {}, aims.targets(Runner.of(dense, batch), [batch]), 1)
    for old, new, gradient in zip(start, small.parameters(), gradients, strict=True):
        if old.dim() < 2:
            assert torch.equal(old, new)  # biases are left alone
            continue
        length = tuning.STEP * old[old != 0].square().mean().sqrt()
        # Adam divides by |g| + 1e-8: a millionth of the length off where |g| is 1e-2, and no step where it is 0
        moves = (gradient.abs() > 1e-4) & (old != 0)
        assert moves.any()
        torch.testing.assert_close((new - old)[moves], -length * gradient[moves].sign(), rtol=1e-3, atol=0.0)
        assert torch.equal(new[old == 0], old[old == 0])


def _trains(model: nn.Module, batch: Tensor) -> list[Tensor]:
    """The spikes (T, B, ...) of each neuron of a SequentialState, by hooks on the modules."""
    found: dict[nn.Module, list[Tensor]] = {}
    run = library.default_forward(model, batch)
    neurons = [module for module in model.modules() if is_spiking(module)]
    handles = [
        neuron.register_forward_hook(lambda module, inputs, output: found.setdefault(module, []).append(output[0]))
        for neuron in neurons
    ]
    run(model, batch)
    for handle in handles:
        handle.remove()
    return [torch.stack(found[neuron]) for neuron in neurons]


def test_it_is_deterministic_and_leaves_flags_gradients_and_modes() -> None:
    case, found = CASES["conv"], []
    for _ in range(2):
        model = case.model().train()
        for number, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(number % 2 == 0)
        flags = [(p.requires_grad, p.grad) for p in model.parameters()]
        compress(model, [case.batch()], prune=Prune(0.5), calibration=Calibration(tuning=3), inplace=True)
        assert [(p.requires_grad, p.grad) for p in model.parameters()] == flags and model.training
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_baselines_are_not_tuned() -> None:
    case, found = CASES["step"], []
    for steps in (0, 5):
        settings = Calibration(tuning=steps)
        new, _ = compress(case.model(), [case.batch()], method="magnitude", prune=Prune(0.5), calibration=settings)
        found.append(list(new.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_network_without_gradients_is_refused_and_stays_as_it_was() -> None:
    neuron = BOX._replace(method="heaviside")
    model = norse.SequentialState(nn.Linear(5, 5), norse.LIFBoxCell(neuron), nn.Linear(5, 4), norse.LIFBoxCell(neuron))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(5.0)
    x = CASES["step"].batch()[..., :5]
    picture = Unchanged(model)
    with pytest.raises(UnsupportedModelError, match="surrogate gradient"):
        compress(model, [x], prune=Prune(0.5), calibration=Calibration(tuning=2), inplace=True)
    picture.check()


@pytest.mark.parametrize("steps", [-1, 2.5, True])
def test_a_number_of_steps_that_is_none(steps: Any) -> None:
    with pytest.raises(SettingsError, match="whole number of steps"):
        Calibration(tuning=steps)


def observation(output: Any, classes: bool) -> aims.Observation:
    """What is seen of a model with this output."""
    return aims.observe(Runner(nn.Identity(), library, lambda model, batch: output), torch.ones(1), classes)


@pytest.mark.parametrize("shape", [(7, 4, 3), (4, 3)], ids=["steps", "sums"])
def test_classes_are_what_the_output_sums_up_to(shape: tuple[int, ...]) -> None:
    output = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    scores = observation(output, classes=True).scores
    assert scores is not None
    torch.testing.assert_close(scores, output.sum(0) if len(shape) == 3 else output)
    assert observation(output, classes=False).scores is None


def test_a_state_behind_the_output_is_no_output() -> None:
    output = torch.rand(7, 4, 3, generator=torch.Generator().manual_seed(0))
    alone, beside = observation(output, True), observation((output, {"v": output}), True)
    assert alone.scores is not None and beside.scores is not None and torch.equal(alone.scores, beside.scores)
    assert beside.readout is output


def test_classes_count_by_their_divergence_and_values_do_not() -> None:
    """Against torch.distributions, on scores that no other term sees."""
    dense, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    target, seen = observation(dense, True), observation(other, True)
    p, q = (torch.distributions.Categorical(logits=2.0 * scores) for scores in (dense, other))
    expected = float(torch.distributions.kl_divergence(p, q))
    assert float(aims.distance(seen, target, inverse_temperature=2.0)) == pytest.approx(expected, rel=1e-6)
    assert float(aims.distance(seen, target)) == 0.0


def test_every_fifth_piece_decides_and_is_not_fitted_to() -> None:
    case = CASES["step"]
    pieces = [case.batch(seed=seed) for seed in range(11)]
    wanted = aims.targets(Runner.of(case.model(), case.batch(), case.forward), pieces)
    assert len(wanted.train) == 9 and len(wanted.validation) == 2
    for (piece, _), number in zip(wanted.validation, (4, 9), strict=True):
        assert torch.equal(piece, pieces[number])
    few = aims.targets(Runner.of(case.model(), case.batch(), case.forward), pieces[:4])
    assert few.validation is few.train and len(few.train) == 4


def test_all_pieces_are_taken_before_one_is_taken_again() -> None:
    order = tuning._shuffled(4, 10)
    assert len(order) == 10 and sorted(order[:4]) == sorted(order[4:8]) == [0, 1, 2, 3]
    assert order == tuning._shuffled(4, 10)


def test_outputs_are_classes_or_values() -> None:
    with pytest.raises(SettingsError, match="outputs='labels' is unknown"):
        Calibration(outputs="labels")


def test_a_readout_counts_by_its_squared_error() -> None:
    spikes = {"neuron": torch.tensor([[[1.0]], [[0.0]]])}
    target = aims.Observation(spikes, torch.tensor([3.0, 4.0]))
    seen = aims.Observation(spikes, torch.tensor([3.0, 2.0]))
    assert float(aims.distance(seen, target)) == pytest.approx(4 / 25)
