"""What compress leaves alone: the input model, modes, hooks, types, flags, random state; and what it takes as data."""

import copy
from collections.abc import Iterator
from typing import Any

import norse.torch as norse
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from integration_tests.models.cases import CASES
from integration_tests.models.networks import LIF, B, over_time
from integration_tests.models.one_shot import compress
from integration_tests.strangers.test_bad_input import Unchanged
from sbc_plugin import Calibration, Prune, Quantize, calibrate
from sbc_plugin.norse import find_layers

HALF, BOTH = Prune(0.5), {"prune": Prune(0.5), "quantize": Quantize(4)}
ORDERS = [Calibration(), Calibration("sequential")]


def state(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_input_model_is_untouched(name: str) -> None:
    case = CASES[name]
    model, batch = case.model().train(), case.batch()
    if children := list(model.children()):
        children[-1].eval()  # modes are kept module by module
    model.register_forward_hook(lambda module, inputs, output: None)
    picture = Unchanged(model)
    new, _ = compress(model, [batch], forward=case.forward, **BOTH)
    picture.check()
    assert not {id(p) for p in model.parameters()} & {id(p) for p in new.parameters()}
    assert [m.training for m in new.modules()] == [m.training for m in model.modules()]
    assert [p.dtype for p in new.parameters()] == [p.dtype for p in model.parameters()]


@pytest.mark.parametrize("calibration", ORDERS, ids=["one-shot", "sequential"])
@pytest.mark.parametrize("name", ["step", "LIFRecurrentCell", "NIR graph"])
def test_in_place_is_the_same_result_in_the_same_tensors(name: str, calibration: Calibration) -> None:
    case = CASES[name]
    settings: dict[str, Any] = {"forward": case.forward, "calibration": calibration, **BOTH}
    copied, _ = compress(case.model(), [case.batch()], **settings)
    model = case.model()
    identities = [id(p) for p in model.parameters()]
    result, _ = compress(model, [case.batch()], inplace=True, **settings)
    assert result is model and [id(p) for p in model.parameters()] == identities and same(model, copied)


@pytest.mark.parametrize("calibration", ORDERS, ids=["one-shot", "sequential"])
def test_the_same_call_gives_the_same_result_and_no_random_number_is_used(calibration: Calibration) -> None:
    case = CASES["conv"]
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(compress(case.model(), [case.batch()], calibration=calibration, **BOTH)[0])
        torch.manual_seed(seed)
        assert torch.equal(before, torch.get_rng_state())
    assert same(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("calibration", ORDERS, ids=["one-shot", "sequential"])
@pytest.mark.parametrize("name", ["conv", "SEW"])  # in bfloat16 Norse's sequence neurons do not run themselves
def test_types_are_kept(name: str, calibration: Calibration, dtype: torch.dtype) -> None:
    case = CASES[name]
    new, _ = compress(case.model(dtype), [case.batch()], prune=HALF, calibration=calibration)
    assert all(p.dtype == dtype and p.isfinite().all() for p in new.parameters())
    weights = [layer.weight() for layer in find_layers(new, case.batch())[0]]
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * sum(w.numel() for w in weights))


def test_frozen_parameters_are_compressed_and_stay_frozen() -> None:
    case = CASES["conv"]
    model = case.model().requires_grad_(False)
    new, _ = compress(model, [case.batch()], prune=HALF)
    assert same(new, compress(case.model(), [case.batch()], prune=HALF)[0])
    assert not any(p.requires_grad for p in [*model.parameters(), *new.parameters()])
    assert all(p.grad is None and p.is_leaf for p in new.parameters())


def test_zeros_of_before_stay_zero_and_count() -> None:
    case = CASES["conv"]
    model = case.model()
    model[0].weight.data[:, 0, 0, 0] = 0  # type: ignore[index, union-attr]
    new, _ = compress(model, [case.batch()], **BOTH)
    assert (new[0].weight[:, 0, 0, 0] == 0).all()  # type: ignore[index, union-attr]
    again, _ = compress(new, [case.batch()], quantize=Quantize(8))
    for old, now in zip(new.parameters(), again.parameters(), strict=True):
        assert old.dim() < 2 or (now[old == 0] == 0).all()


@pytest.mark.parametrize("name", ["LIFRecurrentCell", "LSNNRecurrent"])
@pytest.mark.parametrize("calibration", ORDERS, ids=["one-shot", "sequential"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_autapses_stay_zero(name: str, calibration: Calibration, sparsity: float) -> None:
    case = CASES[name]
    for quantize in (None, Quantize(3, symmetric=False)):
        new, _ = compress(
            case.model(), [case.batch()], prune=Prune(sparsity), quantize=quantize, calibration=calibration
        )
        assert all(m.recurrent_weights.diagonal().eq(0).all() for m in new.modules() if hasattr(m, "recurrent_weights"))


def stream(batches: list[Any]) -> Iterator[Any]:
    yield from batches


@pytest.mark.parametrize("calibration", ORDERS, ids=["one-shot", "sequential"])
def test_every_kind_of_calibration_data(calibration: Calibration) -> None:
    case = CASES["step"]
    batches, model = [case.batch(), case.batch(seed=2)], case.model()
    plain, _ = compress(model, batches, calibration=calibration, **BOTH)
    labelled = [(x, torch.zeros(B)) for x in batches]
    named = [{"label": 1, "input": x} for x in batches]
    sparse = [x.to_sparse() for x in batches]
    for data in (stream(batches), iter(batches), tuple(batches), labelled, named, stream(labelled), sparse):
        assert same(compress(model, data, calibration=calibration, **BOTH)[0], plain)  # type: ignore[arg-type]
    sequences = TensorDataset(torch.cat(batches, 1).transpose(0, 1), torch.arange(2 * B))
    loader = DataLoader(
        sequences, B, collate_fn=lambda items: (torch.stack([x for x, _ in items], 1), [y for _, y in items])
    )
    assert same(compress(model, loader, calibration=calibration, **BOTH)[0], plain)


def test_a_shuffled_loader_leaves_the_random_state_of_others_alone() -> None:
    case = CASES["step"]
    data = DataLoader(list(case.batch().unbind(1)), B, shuffle=True, collate_fn=lambda items: torch.stack(items, 1))
    new, report = compress(case.model(), data, prune=HALF, calibration=Calibration("sequential"))
    assert report.layers[0].sequences == B and all(p.isfinite().all() for p in new.parameters())


def test_a_forward_and_batches_of_ones_own() -> None:
    class Sample:
        def __init__(self, x: Tensor) -> None:
            self.spikes = x

    case = CASES["step"]
    plain, _ = compress(case.model(), [case.batch()], prune=HALF)
    mine, _ = compress(case.model(), [Sample(case.batch())], prune=HALF, forward=lambda m, s: over_time(m, s.spikes))
    assert same(plain, mine)


def test_sequential_and_one_shot_agree_on_the_first_layer() -> None:
    """Nothing is compressed before it; and with a uniform budget the second differs by alpha."""
    case, found = CASES["step"], []
    for calibration in (Calibration(), *(Calibration("sequential", alpha=alpha) for alpha in (0.0, 1.0))):
        settings = {"prune": Prune(0.75, allocation="uniform"), "calibration": calibration}
        found.append(state(compress(case.model(torch.float64), [case.batch()], **settings)[0]))  # type: ignore[arg-type]
    once, own, dense = found
    assert torch.equal(once[0], own[0]) and torch.equal(once[0], dense[0])
    assert not torch.equal(once[2], own[2]) and not torch.equal(own[2], dense[2])


def test_sequential_with_alpha_1_hits_the_dense_membrane() -> None:
    """8 bits change the first layer little, so nothing but the exact target is left for alpha = 1 to reach."""
    case, errors = CASES["step"], []
    dense = case.model(torch.float64)
    data = [case.batch(torch.float64, seed=seed) for seed in range(20)]
    for alpha in (0.0, 1.0):
        calibration = Calibration("sequential", alpha=alpha, damping=1e-6)
        new, _ = compress(dense, data, prune=Prune(0.2), calibration=calibration)
        errors.append(sum(float((case.output(new, x) - case.output(dense, x)).square().sum()) for x in data))
    assert errors[1] <= errors[0]


def test_max_samples_bounds_each_batch_and_is_deterministic() -> None:
    case = CASES["conv"]
    data = [case.batch(), case.batch(seed=2)]
    runs = [calibrate(case.model(), data, calibration=Calibration(max_samples=10)) for _ in range(2)]
    full = calibrate(case.model(), data)
    for name, accumulator in runs[0].items():
        assert accumulator.count == 20 < full[name].count
        assert torch.equal(accumulator.sum_xx, runs[1][name].sum_xx)
    large = calibrate(case.model(), data, calibration=Calibration(max_samples=10**6))
    assert all(torch.equal(large[name].sum_xx, full[name].sum_xx) for name in full)


def test_accumulators_of_parts_merge_to_the_whole() -> None:
    case = CASES["per neuron"]
    data = [case.batch(torch.float64, seed=seed) for seed in range(4)]
    whole = calibrate(case.model(torch.float64), data)
    parts = [calibrate(case.model(torch.float64), part) for part in (data[:1], data[1:])]
    for name, accumulator in whole.items():
        parts[0][name].merge(parts[1][name])
        assert parts[0][name].count == accumulator.count
        torch.testing.assert_close(parts[0][name].hessian(), accumulator.hessian(), rtol=1e-12, atol=1e-14)


def test_a_copy_of_a_nir_graph_is_independent_and_runs() -> None:
    case = CASES["NIR graph"]
    model = case.model()
    before = case.output(model, case.batch())
    new, _ = compress(model, [case.batch()], forward=case.forward, prune=Prune(0.9))
    for parameter in new.parameters():
        parameter.data.zero_()
    assert torch.equal(case.output(model, case.batch()), before)
    assert case.output(new, case.batch()).eq(0).all()
    assert not {id(m) for m in model.modules()} & {id(m) for m in new.modules()}


def test_compressed_models_can_be_copied_trained_and_compressed_again() -> None:
    case = CASES["step"]
    new, _ = compress(case.model(), [case.batch()], prune=HALF)
    twin = copy.deepcopy(new)
    over_time(twin.train(), case.batch()).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    _, report = compress(new, [case.batch()], prune=Prune(0.7))
    assert report.sparsity == pytest.approx(0.7, abs=0.01)


def test_plain_tensors_as_recurrent_weights() -> None:
    w_in, w_rec = torch.randn(4, 5), torch.randn(4, 4)
    cell = norse.LIFRecurrentCell(5, 4, p=LIF, input_weights=w_in, recurrent_weights=w_rec)
    new, report = compress(norse.SequentialState(cell), [CASES["step"].batch()], prune=HALF)
    assert report.layers[0].sparsity == 0.5 and w_in.count_nonzero() == 20
    assert new[0].input_weights.count_nonzero() + new[0].recurrent_weights.count_nonzero() == 18


@pytest.mark.parametrize("name", ["step", "lift", "conv", "NIR graph"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("calibration", ORDERS, ids=["one-shot", "sequential"])
def test_without_gradients_around_it(name: str, context: Any, calibration: Calibration) -> None:
    """Discovery follows gradients' graphs, so it turns them on itself; the result can be trained outside."""
    case = CASES[name]
    plain, _ = compress(case.model(), [case.batch()], calibration=calibration, **BOTH)
    model = case.model()
    with context():
        new, _ = compress(model, [case.batch()], calibration=calibration, **BOTH)
        again, _ = compress(model, [case.batch()], calibration=calibration, inplace=True, **BOTH)
    assert same(new, plain) and same(again, plain)
    assert all(p.requires_grad and not p.is_inference() for p in new.parameters())
