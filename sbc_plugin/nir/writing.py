"""A Norse model as a NIR graph, and as a file."""

import io
from pathlib import Path
from typing import Any

import nir
from torch import nn

from sbc_plugin.calibration.driver import check_has_values
from sbc_plugin.checkpoint.atomic import replacing
from sbc_plugin.errors import SettingsError
from sbc_plugin.nir.graph_nodes import as_array, graph_of_wiring
from sbc_plugin.nir.reading import Shape
from sbc_plugin.nir.tracing import trace
from sbc_plugin.nir.weight_integers import integers
from sbc_plugin.nir.wiring import is_wired, wiring_of


def write(
    target: str | Path,
    model: nn.Module,
    *,
    input_shape: Shape | None = None,
    example: Any = None,
    codes: bool = False,
    power_of_two: bool = False,
) -> None:
    """Write a model as a .nir file: a file beside it first, then renamed, so that nothing is ever half written.

    Weights are floats, as NIR has them: of a quantised model, codes times scale. What NIR does not know stands in
    metadata: of the graph, time step and reset method, where :func:`read` finds them; of a weight, its integers.

    Args:
        target: path of the file; one that is there is replaced.
        model: from :func:`read`, ``norse.from_nir``, or a SequentialState, in step or sequence mode; with ``example``
            of any other class.
        input_shape: of one time step of one sequence, without batch; None where the model or its first Linear says it.
        example: a batch, by which :func:`trace` finds out how the modules of a model of another class are connected.
        codes: put each weight's int8 "codes", "scale" (rows,) and "threshold" into its node's metadata, as
            :func:`integers` finds them.
        power_of_two: demand scales that are powers of two, and add their "exponent"; only with ``codes``.

    Raises:
        UnsupportedModelError: a module without a counterpart in NIR, or a name that no file can hold.
        SettingsError: no input shape, or one that does not fit; with ``codes``, weights that are on no such grid.
        CheckpointError: the file cannot be written.
    """
    graph = graph_of(model, input_shape=input_shape, example=example, codes=codes, power_of_two=power_of_two)
    data = io.BytesIO()  # where a disk is full, HDF5 prints tracebacks of its own and may end the process
    nir.write(data, graph)
    with replacing(target) as beside:
        beside.write_bytes(data.getvalue())


def graph_of(
    model: nn.Module,
    *,
    input_shape: Shape | None = None,
    example: Any = None,
    codes: bool = False,
    power_of_two: bool = False,
) -> Any:
    """The ``nir.NIRGraph`` of a model, with the shapes of every node; the arguments are those of :func:`write`.

    A recurrent cell becomes a neuron with two Linear nodes, one of them fed by the neuron's own spikes.

    Raises:
        UnsupportedModelError: a module without a counterpart in NIR, a name that no file can hold, or no values.
        SettingsError: no input shape, or one that does not fit; with ``codes``, weights that are on no such grid.
    """
    if power_of_two and not codes:
        raise SettingsError("power_of_two=True says which integers to store; give codes=True with it")
    check_has_values(model)
    if example is not None and not is_wired(model):
        model = trace(model, example)
    wiring = wiring_of(model)
    graph = graph_of_wiring(wiring, input_shape or wiring.input_shape)
    for name, entry in integers(model, power_of_two=power_of_two).items() if codes else ():
        stored = {key: getattr(entry, key) for key in ("codes", "scale", "exponent", "threshold")}
        graph.nodes[name].metadata |= {key: as_array(value) for key, value in stored.items() if value is not None}
    return graph
