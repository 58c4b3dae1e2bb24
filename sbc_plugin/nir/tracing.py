"""A model of one's own class as a graph of its modules: it runs once, and what each module gets shows what feeds it.

Autograd says which modules' outputs an input depends on. NIR adds what meets at a node and may scale it, so the input
has to be a weighted sum of those outputs, each of this time step or of the one before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.batches import check_batch
from sbc_plugin.calibration.driver import Driver, as_input, first_result
from sbc_plugin.calibration.forward import eval_mode, hooked
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.errors import CalibrationError, UnsupportedModelError
from sbc_plugin.nir.graph_nodes import graph_of_wiring
from sbc_plugin.nir.network import Network
from sbc_plugin.nir.neuron_nodes import NEURON_CLASSES, Gain
from sbc_plugin.nir.reading import read
from sbc_plugin.nir.traced_graph import INPUT, NORMS, Record, TracedGraph
from sbc_plugin.norse.autograd_paths import Origin, tagged
from sbc_plugin.norse.call_trace import detached
from sbc_plugin.norse.calling import driver_of
from sbc_plugin.norse.copying import copy_model
from sbc_plugin.norse.neurons import NEURONS

WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NODES = (*WEIGHTS, *NORMS, nn.AvgPool2d, nn.LPPool2d, nn.Flatten, Gain, *NEURON_CLASSES, *NEURONS)
SEQUENCES, MOST_STEPS = 2, 10**6  # of the example that run
NEAR = 2e-5  # of the largest value of an answer: the network holds its numbers in float32


def trace(model: nn.Module, example: Any, *, output: str | None = None, batch_first: bool | None = None) -> Network:
    """A Norse model of any class as the network that :func:`read` would make of its file; :func:`write` takes it.

    The model runs once, on two sequences in float64, and the network has to give the same answers. BatchNorm is folded
    into the layer before it.

    Args:
        model: in step or sequence mode, or one that loops over time itself; left as it was.
        example: a batch as for :func:`sbc_plugin.compress`, in which every neuron module spikes.
        output: name of the module that the network ends with; None: what the model returns.
        batch_first: whether the example is (B, T, ...); None: as the model takes it.

    Returns:
        One time step a call, ``output, state = network(x, state)``, in float32.

    Raises:
        UnsupportedModelError: a module without a counterpart in NIR, or something between two modules that is no sum
            of their outputs: names them.
        SettingsError: no such output, or a module whose output stays 0.
        CalibrationError: the example is empty, not finite, or has no time axis.

    >>> from norse.torch import LIFBoxCell
    >>> class Own(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc, self.lif = nn.Linear(3, 2, bias=False), LIFBoxCell(dt=0.01)
    ...     def forward(self, x, state=None):
    ...         return self.lif(2 * self.fc(x), state)
    >>> model = Own()
    >>> model.fc.weight.data.fill_(0.5)
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    >>> network = trace(model, torch.ones(4, 1, 3))
    >>> network.edges
    (('input', 'fc'), ('fc', 'fc_scale'), ('fc_scale', 'lif'), ('lif', 'output'))
    """
    check_batch(example, 0)
    copy = copy_model(unwrapped(model)).float().eval()
    try:
        exact = copy_model(copy).double()
        steps, records, answer = _run(exact, example, batch_first)
    except RuntimeError:  # a part of it makes float32
        exact = copy
        steps, records, answer = _run(exact, example, batch_first)
    traced = TracedGraph({name: exact.get_submodule(name) for name in records if name != INPUT}, records)
    expected = traced.end(output, answer)
    graph = graph_of_wiring(traced.wiring(), tuple(steps.shape[2:]))
    with torch.no_grad():
        found = Driver(1, (None,))(read(graph).to(steps.dtype), steps)
    if float((found - expected).abs().max()) > NEAR * max(1.0, float(expected.abs().max())):
        raise UnsupportedModelError(
            f"{type(model).__name__} answers otherwise than the graph of its modules, so it computes something outside "
            "of them; put that into a module"
        )
    return read(graph)


def _run(model: nn.Module, example: Any, batch_first: bool | None) -> tuple[Tensor, dict[str, Record], Record]:
    """One run: the example's steps (T, B, ...), what each node does, and what the model returns.

    Raises:
        CalibrationError: the example has no time axis.
    """
    whole = as_input(model, example)
    driver = driver_of(model, whole, batch_first)
    x = driver.sample(whole, steps=MOST_STEPS, sequences=SEQUENCES)
    steps = x if driver.batch_axis else x.transpose(0, 1)
    if driver.still or x.dim() < 3 or len(steps) < 2:
        raise CalibrationError(
            f"the example gives {type(model).__name__} no time steps of its own, and a NIR graph takes one after the "
            "other; give an example (T, B, ...), and of a model that shows a still input for many steps the part "
            "behind that"
        )
    records = {INPUT: Record()}

    def seen(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], result: Any) -> Any:
            taken = given[0] if given else next(iter(named.values()))
            taken = taken[0] if isinstance(taken, tuple) else taken  # Lift takes a neuron's output with its state
            whole = isinstance(result, tuple)
            output = result[0] if whole else result
            record = records.setdefault(name, Record())
            record.add(taken, output)
            following = tagged(output, Origin("node", name, len(record.outputs) - 1))
            return (following, *detached(result[1:])) if whole else following

        return hook

    hooks = (node.register_forward_hook(seen(name), with_kwargs=True) for name, node in _nodes(model).items())
    with eval_mode(model), torch.inference_mode(False), torch.enable_grad(), hooked(hooks):
        result = driver(model, tagged(x, Origin("node", INPUT, 0)))
    answer = Record()
    answer.add(first_result(result), first_result(result))
    records[INPUT].outputs.append(steps)
    return steps, records, answer


def _nodes(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that become nodes, those inside of them left out."""
    nodes: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in nodes)
        acting = getattr(module, "lifted_module", module)
        if name != INPUT and not inside and isinstance(acting, NODES):
            nodes[name] = module
    return nodes
