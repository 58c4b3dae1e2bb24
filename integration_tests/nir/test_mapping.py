"""NIR nodes as Norse modules and back: NIR's own equations, torch, and Norse's import where that is right agree."""

from itertools import pairwise
from typing import Any

import nir
import norse.torch as norse
import numpy
import pytest
import torch
from torch import Tensor, nn

from integration_tests.models.networks import imported
from integration_tests.models.nir_graphs import (
    DT,
    GRAPHS,
    chain,
    convolutional,
    cuba,
    dense,
    graph,
    integrate_and_fire,
    lif,
    recurrent,
    residual,
    run,
    spikes,
    values,
    weight,
)
from integration_tests.models.one_shot import compress
from sbc_plugin import Calibration, Quantize, calibrate, compare
from sbc_plugin.errors import CheckpointError, SettingsError
from sbc_plugin.nir import graph_of, read

STEPS, BATCH, N = 60, 3, 7


def current(seed: int = 0, *shape: int) -> Tensor:
    """Analogue input that differs everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand((STEPS, BATCH, *(shape or (N,))), generator=generator, dtype=torch.float64) - 0.3


def euler(node: Any, x: Any, subtract: bool = False) -> Any:
    """NIR's differential equations in steps of DT, from rest; of IF, whose input is impulses, their integral."""
    spiking = hasattr(node, "v_threshold")
    leak = getattr(node, "v_leak", 0)
    v = numpy.zeros(x.shape[1:]) + (node.v_reset if isinstance(node, nir.IF) else leak)
    i, outputs = numpy.zeros(x.shape[1:]), []
    for step in x:
        if isinstance(node, nir.CubaLIF | nir.CubaLI):
            i = i + DT / node.tau_syn * (-i + node.w_in * step)
            v = v + DT / node.tau_mem * (leak - v + node.r * i)
        elif isinstance(node, nir.IF):
            v = v + node.r * step
        else:
            v = v + DT / node.tau * (leak - v + node.r * step)
        z = v > node.v_threshold if spiking else v
        if spiking:
            v = numpy.where(z, v - node.v_threshold if subtract else node.v_reset, v)
        outputs.append(z)
    return numpy.stack(outputs)


def integrators() -> list[Any]:
    draw = values(3)
    tau, r, leak = draw(N, 2e-3, 8e-3), draw(N, 0.5, 2), draw(N, -0.2, 0.2)
    box = nir.LI(tau=tau, r=r, v_leak=leak)
    return [box, nir.CubaLI(tau_syn=draw(N, 2e-3, 6e-3), tau_mem=tau, r=r, v_leak=leak, w_in=draw(N, 1, 3))]


@pytest.mark.parametrize(
    "node", [lif(N), cuba(N), integrate_and_fire(N), *integrators()], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("reset", ["reset_value", "reset_subtract"])
def test_neurons_follow_nirs_equations(node: Any, reset: str) -> None:
    model = read(chain((N,), (N,), neuron=node), dt=DT, reset_method=reset).double()
    found, expected = run(model, current()), euler(node, current().numpy(), reset == "reset_subtract")
    if hasattr(node, "v_threshold"):
        assert 0.02 < expected.mean() < 0.9
        assert torch.equal(found, torch.from_numpy(expected).double())
    else:
        # parameters are float32: 6e-8 relative, over a memory of some ten steps
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=2e-6)


def test_norses_own_synapse_is_norses_lif_and_li() -> None:
    tau = numpy.full(N, 5e-3)
    times = {"tau_syn": tau, "tau_mem": tau, "r": numpy.ones(N), "v_leak": numpy.zeros(N), "w_in": tau / DT}
    spiking = nir.CubaLIF(**times, v_threshold=numpy.ones(N))
    for node, kind in ((spiking, norse.LIFCell), (nir.CubaLI(**times), norse.LICell)):
        model = read(chain((N,), (N,), neuron=node), dt=DT)
        assert isinstance(model.module_of("neuron"), kind)
        found, expected = run(model.double(), current()), torch.from_numpy(euler(node, current().numpy())).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert not isinstance(read(chain((N,), (N,), n=spiking), dt=DT, reset_method="reset_subtract").n, norse.LIFCell)
    assert not isinstance(read(chain((N,), (N,), n=spiking), dt=2 * DT).n, norse.LIFCell)


@pytest.mark.parametrize("kind", ["LIF", "IF", "recurrent"])
def test_agrees_with_norses_import_where_that_is_right(kind: str) -> None:
    """Norse reads r = 1, v_reset = 0, and chains; its recurrent edge takes a step, as ours."""
    source = {
        "LIF": dense(lambda *shape, seed: lif(*shape, seed=seed, plain=True)),
        "IF": dense(lambda *shape, seed: integrate_and_fire(*shape, seed=seed, plain=True)),
        "recurrent": recurrent(lambda *shape, seed: lif(*shape, seed=seed, plain=True)),
    }[kind]
    x = spikes((5,), STEPS, 8)
    expected = run(imported(source, dt=DT), x)
    assert 0 < expected.mean() < 1
    assert torch.equal(run(read(source, dt=DT), x), expected)


def test_two_ways_that_meet_are_added_in_the_same_step() -> None:
    """Norse's import runs n2 before fc2, so that fc2 arrives a step late."""
    model, x = read(residual(), dt=DT), spikes((5,))
    fc1, n1, fc2, n2 = (model.module_of(name) for name in ("fc1", "n1", "fc2", "n2"))
    s1 = s2 = None
    for step, found in zip(x, run(model, x), strict=True):
        z, s1 = n1(fc1(step), s1)
        z, s2 = n2(z + fc2(z), s2)
        assert torch.equal(found, z)


def test_nodes_may_have_any_name() -> None:
    names = ["order", "nodes", "forward", "a.b", "a_b", "dt"]
    nodes = {name: nir.Linear(weight(seed, 5, 5)) for seed, name in enumerate(names)}
    path = ["input", *nodes, "neuron", "output"]
    model = read(graph((5,), (5,), nodes | {"neuron": lif(5)}, list(pairwise(path))))
    assert [model.nodes[name] for name, _ in model.named_children()] == [*names, "neuron"]
    assert list(graph_of(model).nodes) == path
    assert run(model, spikes((5,))).shape == (25, 4, 5)


@pytest.mark.parametrize("make", [residual, lambda: recurrent(cuba)])
def test_the_order_of_edges_does_not_count(make: Any) -> None:
    source, x = make(), spikes((5,))
    expected = run(read(source, dt=DT), x)
    for turn in range(1, len(source.edges)):
        edges = source.edges[turn:] + source.edges[:turn]
        assert torch.equal(run(read(nir.NIRGraph(source.nodes, edges, type_check=False), dt=DT), x), expected)


def test_a_loop_takes_a_step_and_starts_silent() -> None:
    model, x = read(recurrent(cuba), dt=DT), spikes((5,))
    fc1, hidden, w_rec, fc2, n2 = (model.module_of(name) for name in ("fc1", "hidden.lif", "hidden.w_rec", "fc2", "n2"))
    w_rec.bias.data.fill_(0.3)  # type: ignore[operator, union-attr]
    s1 = s2 = last = None
    for step, found in zip(x, run(model, x), strict=True):
        z, s1 = hidden(fc1(step) if last is None else fc1(step) + w_rec(last), s1)
        last = z
        z, s2 = n2(fc2(z), s2)
        assert torch.equal(found, z)
    nested = read(recurrent(cuba, nested=True), dt=DT)
    assert torch.equal(run(nested, x), run(read(recurrent(cuba), dt=DT), x))


def test_convolution_pooling_flatten_are_torchs() -> None:
    source, x = convolutional(), spikes((2, 8, 8))
    model, nodes = read(source, dt=DT), source.nodes
    state: dict[str, Any] = {}

    def neuron(name: str, value: Tensor) -> Tensor:
        value, state[name] = model.module_of(name)(value, state.get(name))
        return value

    for step, found in zip(x, run(model, x), strict=True):
        first, second = (torch.from_numpy(nodes[name].weight) for name in ("conv1", "conv2"))
        z = neuron("lif1", nn.functional.conv2d(step, first, torch.full((4,), 0.1), padding=1))
        z = nn.functional.conv2d(nn.functional.avg_pool2d(z, 2), second, padding=(1, 0), groups=2)
        z = 4 * nn.functional.avg_pool2d(neuron("if2", z), 2)
        z = neuron("cuba", z.flatten(1) @ torch.from_numpy(nodes["fc"].weight).T)
        torch.testing.assert_close(found, z, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("start", "end", "shape"), [(0, -1, (24,)), (1, -1, (6, 4)), (0, 1, (12, 2)), (-2, -1, (6, 4))]
)
def test_flatten_counts_axes_without_batch(start: int, end: int, shape: tuple[int, ...]) -> None:
    source = chain((6, 2, 2), shape, flat=nir.Flatten(numpy.array([6, 2, 2]), start, end))
    assert run(read(source), spikes((6, 2, 2), 2, 3)).shape == (2, 3, *shape)
    assert tuple(graph_of(read(source)).nodes["flat"].output_type["output"]) == shape


def test_flatten_of_a_tool_that_counts_the_batch() -> None:
    flat = nir.Flatten(numpy.array([6, 2, 2]), 1, -1)
    source = chain((6, 2, 2), (3,), flat=flat, fc=nir.Linear(weight(0, 3, 24)))
    assert run(read(source), spikes((6, 2, 2), 2, 3)).shape == (2, 3, 3)


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_come_back_with_types_that_nir_accepts(kind: str) -> None:
    source = GRAPHS[kind]()
    model = read(source, dt=DT)
    back = graph_of(model)
    assert back.check_types()
    flat = {name for name, node in source.nodes.items() if not isinstance(node, nir.NIRGraph)}
    assert flat <= set(back.nodes)
    for name in flat - {"input", "output"}:
        for field, value in vars(source.nodes[name]).items():
            if isinstance(value, numpy.ndarray):
                # neurons' parameters through float32, weights exact
                numpy.testing.assert_allclose(getattr(back.nodes[name], field), value, rtol=1e-7, atol=1e-9)
    again = read(back)
    x = spikes(model.input_shape)
    assert torch.equal(run(again, x), run(model, x))


def test_compress_and_compare_take_what_is_read() -> None:
    model, data = read(convolutional(), dt=DT), [spikes((2, 8, 8), seed=s) for s in range(2)]
    found = calibrate(model, data, calibration=Calibration())
    assert list(found) == ["conv1", "conv2", "fc"]
    small, report = compress(model, data, quantize=Quantize(4))
    assert not report.skipped.keys() - {"conv1", "conv2", "fc"}
    assert compare(model, small, data).neurons
    assert torch.equal(model.module_of("fc").weight, torch.from_numpy(convolutional().nodes["fc"].weight))  # type: ignore[arg-type]


def test_damaged_graphs_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'n'.*LIF of shape \(6,\) gets an input of shape \(5,\)"):
        read(chain((5,), (6,), n=lif(6)))
    with pytest.raises(CheckpointError, match=r"'fc'.*Linear does not take an input of shape \(5,\)"):
        read(chain((5,), (4,), fc=nir.Linear(weight(0, 4, 6))))
    with pytest.raises(CheckpointError, match="hold both ends of the edge"):
        read(graph((5,), (5,), {}, [("input", "lost"), ("lost", "output")]))
    with pytest.raises(CheckpointError, match=r"\['n'\] get no input"):
        read(graph((5,), (5,), {"n": lif(5)}, [("input", "output")]))
    with pytest.raises(SettingsError, match="dt=-1 is no step of time"):
        read(dense(lif), dt=-1)
    with pytest.raises(SettingsError, match="reset_method='half' is unknown; use one of 'reset_value'"):
        read(dense(lif), reset_method="half")
