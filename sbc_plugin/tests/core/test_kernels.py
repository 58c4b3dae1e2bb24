"""Impulse responses against their formulas, and the recurrent filter against explicit Toeplitz products."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sbc_plugin.core import kernels
from sbc_plugin.core.kernels import CausalFilter, Kernel, distinct, filter_causal, impulse_response
from sbc_plugin.errors import SettingsError

RATES = torch.tensor([0.5, 0.1, 0.02], dtype=torch.float64)
SCALAR = {
    "delta": kernels.delta(),
    "sum": kernels.sum_over_time(),
    "iaf": kernels.iaf(),
    "lif_box": kernels.lif_box(0.3),
    "lif": kernels.lif(0.1, 0.25),
    "lif, equal rates": kernels.lif(0.2, 0.2),
    "lsnn": kernels.lif(0.1, 0.25, delay=1),
    "two steps late": kernels.lif_box(0.1).then(Kernel("late", delay=2)),
    "cascade": kernels.lif_box(0.2).then(kernels.lif_box(0.4)),
    "alpha = 1": kernels.lif_box(1.0),
}
PER_NEURON = {
    "lif_box": kernels.lif_box(RATES),
    "lif": kernels.lif(RATES, RATES.flip(0)),
    "lif, one rate shared": kernels.lif(RATES, 0.3),
    "lsnn": kernels.lif(RATES, 0.3, delay=1),
}


def toeplitz(h: Tensor) -> Tensor:
    """M[t, s] = h[t - s] for t >= s, else 0; by its definition."""
    steps = len(h)
    return torch.stack(
        [torch.stack([h[t - s] if t >= s else h.new_zeros(()) for s in range(steps)]) for t in range(steps)]
    )


def signal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kernel", SCALAR.values(), ids=SCALAR)
def test_filter_is_the_toeplitz_product(kernel: Kernel) -> None:
    x = signal(12, 3, 2)
    expected = torch.einsum("ts,sbc->tbc", toeplitz(impulse_response(kernel, 12)), x)
    # both sum a dozen terms of order 1 in float64
    assert_close(filter_causal(x, kernel), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", PER_NEURON.values(), ids=PER_NEURON)
def test_variants_filter_as_each_would_alone(kernel: Kernel) -> None:
    x = signal(9, 4)
    filtered = filter_causal(x, kernel)
    assert filtered.shape == (3, 9, 4)
    for variant, response in enumerate(impulse_response(kernel, 9)):
        assert_close(filtered[variant], toeplitz(response) @ x, rtol=1e-12, atol=1e-12)


def test_closed_forms() -> None:
    k = torch.arange(20, dtype=torch.float64)
    a, b = 0.1, 0.25
    double_sum = torch.tensor(
        [a * sum((1 - a) ** (n - j) * (1 - b) ** j for j in range(n + 1)) for n in range(20)], dtype=torch.float64
    )
    assert_close(impulse_response(kernels.lif_box(a), 20), a * (1 - a) ** k)
    assert_close(impulse_response(kernels.lif(a, b), 20), double_sum)
    assert_close(impulse_response(kernels.lif(a, a), 20), a * (k + 1) * (1 - a) ** k)
    assert_close(impulse_response(kernels.iaf(), 20), torch.ones_like(k))
    assert_close(impulse_response(kernels.sum_over_time(), 20), torch.ones_like(k))
    assert_close(impulse_response(kernels.delta(), 20), (k == 0).double())
    late = impulse_response(kernels.lif(a, b, delay=1), 20)
    assert late[0] == 0
    assert_close(late[1:], double_sum[:-1])


def test_a_cascade_is_the_convolution_of_its_parts() -> None:
    first, second = kernels.lif(0.1, 0.3, delay=1), kernels.lif_box(torch.tensor([0.2, 0.5]))
    h, g = impulse_response(first, 15), impulse_response(second, 15)
    cascade = first.then(second)
    assert cascade.name == "lif > lif_box" and cascade.delay == 1 and cascade.variants == 2
    expected = torch.stack([toeplitz(row) @ h for row in g])
    assert_close(impulse_response(cascade, 15), expected, rtol=1e-12, atol=1e-14)


def test_long_sequences_neither_underflow_nor_overflow() -> None:
    """decay^i / decay^j would be 0 / 0 here: 0.5^5000 is far below the smallest float64."""
    steps = 5000
    filtered = filter_causal(torch.ones(steps, 1, dtype=torch.float64), kernels.lif_box(0.5))
    expected = 1 - 0.5 ** torch.arange(1, steps + 1, dtype=torch.float64)
    assert_close(filtered[:, 0], expected, rtol=1e-14, atol=0)
    last = filter_causal(torch.nn.functional.pad(torch.ones(1, 1), (0, 0, steps - 1, 0)), kernels.lif(0.5, 0.9))
    assert last[-1].item() == pytest.approx(0.5)
    assert filter_causal(torch.ones(steps, 1), kernels.lif(1e-3, 1e-3)).isfinite().all()


@pytest.mark.parametrize(
    "kernel", [*SCALAR.values(), *PER_NEURON.values()], ids=[*SCALAR, *(f"{n} N" for n in PER_NEURON)]
)
def test_streaming_equals_the_whole_and_reset_forgets(kernel: Kernel) -> None:
    x, causal = signal(7, 2, 3), CausalFilter(kernel)
    for _ in range(2):
        steps = torch.stack([causal.step(step) for step in x], dim=0 if kernel.variants is None else 1)
        assert torch.equal(steps, filter_causal(x, kernel))
        causal.reset()


def test_filter_keeps_the_type_of_its_input_and_does_not_change_it() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(4, 2, dtype=dtype)
        for kernel in (kernels.delta(), kernels.lif(RATES, 0.2, delay=1)):
            assert filter_causal(x, kernel).dtype == dtype
        assert torch.equal(x, torch.ones(4, 2, dtype=dtype))


def test_filter_takes_empty_kernels_of_any_rank() -> None:
    assert kernels.delta().is_identity and not Kernel("late", delay=1).is_identity
    assert torch.equal(filter_causal(torch.arange(3.0), kernels.delta()), torch.arange(3.0))
    assert filter_causal(signal(3, 2, 4, 5, 5), kernels.lif(RATES, 0.1)).shape == (3, 3, 2, 4, 5, 5)


def test_distinct_merges_equal_neurons_and_loses_nothing() -> None:
    alpha = torch.tensor([0.5, 0.1, 0.5, 0.02, 0.1], dtype=torch.float64)
    full = kernels.lif(alpha, 0.25, delay=1)
    reduced, variant = distinct(full, 5, limit=3)
    assert reduced.variants == 3 and reduced.delay == 1 and reduced.name == full.name
    assert torch.equal(impulse_response(reduced, 10)[variant], impulse_response(full, 10))


@pytest.mark.parametrize("alpha", [0.3, torch.tensor([0.3]), torch.full((4,), 0.3)], ids=["scalar", "one", "equal"])
def test_distinct_of_one_response_has_no_variants(alpha: Tensor | float) -> None:
    reduced, variant = distinct(kernels.lif_box(alpha), 4, limit=8)
    assert reduced.variants is None and variant.tolist() == [0] * 4
    assert_close(impulse_response(reduced, 5), impulse_response(kernels.lif_box(0.3), 5), rtol=1e-7, atol=0)


def test_distinct_clusters_neurons_of_similar_memory() -> None:
    alpha = torch.tensor([0.010, 0.9, 0.011, 0.5, 0.91, 0.51], dtype=torch.float64)
    reduced, variant = distinct(kernels.lif_box(alpha), 6, limit=3)
    assert variant[0] == variant[2] and variant[1] == variant[4] and variant[3] == variant[5]
    assert_close(reduced.gains[0][variant], torch.tensor([0.0105, 0.905, 0.0105, 0.505, 0.905, 0.505]).double())
    assert_close(reduced.decays[0], 1 - reduced.gains[0])


def test_distinct_of_more_integrators_than_the_limit() -> None:
    """decay = 1 has an infinite memory: its logarithm must not make the clusters collapse."""
    gains = torch.arange(1.0, 7.0)
    kernel = Kernel("scaled sum", (torch.tensor(1.0),), (gains,))
    reduced, variant = distinct(kernel, 6, limit=2)
    assert reduced.variants == 2 and sorted(variant.tolist()) == [0, 0, 0, 1, 1, 1]


def test_distinct_wants_parameters_for_each_neuron() -> None:
    with pytest.raises(SettingsError, match=r"'lif_box' has parameters for 3 neurons, the layer has 4"):
        distinct(kernels.lif_box(RATES), 4, limit=2)
