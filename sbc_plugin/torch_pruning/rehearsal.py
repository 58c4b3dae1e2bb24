"""The rehearsal of a cut: a copy of the model is cut before anything is really pruned.

The copy has to give what the model gives with the channels set to 0. Both run with linear neurons, whose gains follow
from their parameters, so that a channel which comes to another neuron is seen.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.calibration.forward import hooked
from sbc_plugin.torch_pruning.cuts import Cuts, merged, uneven
from sbc_plugin.torch_pruning.graph.dependency_graph import channel_axis, tensors_in
from sbc_plugin.torch_pruning.graph.neuron_pruners import NeuronPruner
from sbc_plugin.torch_pruning.replay import Replay, linear_neurons, outputs_without

HINT = " (queries, keys and values need num_heads)"
WRITTEN = " (its forward has a size written into it; flatten(1) would follow the channels, num_heads do in attention)"
TOLERANCE = 1e-4  # of the largest output: more than single precision, summed in another order, ever does
ROUNDED = 1e-6  # of the largest output: less than that shows nothing, and more only in double precision


class _RehearsalError(Exception):
    """A rehearsal that came to no comparison; says why."""


class Rehearsal:
    """Cuts a copy of one model, again and again.

    Args:
        replay: of the model.
        graph: torch-pruning's, of the model.
        dealt: layers whose channels are dealt to equal parts that lose as many each, with the number of parts.
    """

    def __init__(self, replay: Replay, graph: Any, dealt: Mapping[Any, int] | None = None) -> None:
        self.replay, self.graph, self.dealt = replay, graph, dealt or {}
        self._copy = replay.library.copy_model(replay.twin)
        self._names = {module: name for name, module in replay.model.named_modules()}

    def wrong(self, groups: Iterable[Any]) -> str:
        """Why the copy with these groups cut is not the model with their channels set to 0; "" if it is."""
        return self.each_wrong({"": groups})[""]

    def each_wrong(self, trials: Mapping[str, Iterable[Any]]) -> dict[str, str]:
        """As :meth:`wrong`, of each of these by itself."""
        cuts = {name: merged(groups) for name, groups in trials.items()}
        reasons = {name: self._judged(each, TOLERANCE, ROUNDED) for name, each in cuts.items()}
        # Where it may be rounding, or a channel of little weight that went astray, double precision tells; to turn
        # two models into it once is cheaper than for each.
        if unsure := [name for name, reason in reasons.items() if reason is None]:
            with self._in_float64() as exact:
                reasons |= {name: self._judged(cuts[name], ROUNDED) if exact else "" for name in unsure}
        return {name: reason or "" for name, reason in reasons.items()}

    def _judged(self, cuts: Cuts, bound: float, sure: float | None = None) -> str | None:
        """What is wrong with these cuts; "" if nothing is, None where the difference lies between sure and bound."""
        if reason := uneven(self.graph, cuts):
            return reason
        try:
            difference = self._difference(cuts)
        except _RehearsalError as failure:
            return str(failure)
        if difference <= bound:
            return "" if sure is None or difference <= sure else None
        return f"without one of its channels the model is not the one with it set to 0{self._why(cuts)}"

    def _why(self, cuts: Cuts) -> str:
        """What makes outputs differ: a norm over channels which go, or what depends on the size of a part."""
        norms = [node.module for node, _ in cuts if isinstance(node.module, nn.LayerNorm | nn.GroupNorm)]
        if norms:
            return f", because the norm {self._names[norms[0]]!r} takes its mean over all channels"
        if parts := self._parts(cuts):
            return f" ({parts}; what the model computes depends on the size of a part, as a scale by that does)"
        return HINT

    def _way_out(self, cuts: Cuts, reason: str) -> str:
        """What would let the model run that does not run for this reason."""
        if parts := self._parts(cuts):
            return (
                f" ({parts}; its forward has the size of a part, or of all of them, written into it: read sizes off "
                "the tensor, as reshape(..., parts, -1) and chunk do)"
            )
        return WRITTEN if "is invalid for input of size" in reason else HINT

    def _parts(self, cuts: Cuts) -> str:
        """Which layer of these loses a channel of each of the parts that it is dealt to; "" if there is none."""
        found = [(self._names[node.module], self.dealt[node.module]) for node, _ in cuts if node.module in self.dealt]
        return f"each of the {found[0][1]} heads or parts of {found[0][0]!r} loses as many channels" if found else ""

    def _difference(self, cuts: Cuts) -> float:
        """How far the cut copy is from the model with these channels set to 0, as a part of the largest output.

        Raises:
            _RehearsalError: one of them cannot be run.
        """
        with self._watched(self.replay.twin) as before:
            expected = self._silenced(cuts)
        if not all(output.isfinite().all() for output in expected):
            raise _RehearsalError("the model's outputs are not finite, so that no cut can be compared")
        try:
            with self._cut(cuts), linear_neurons(self._copy, self.replay.library), self._watched(self._copy) as after:
                found = tensors_in(self.replay.forward(self._copy, self.replay.inputs))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            reason += self._way_out(cuts, reason)
            raise _RehearsalError(f"the model does not run without one of its channels: {reason}") from error
        if [output.shape for output in expected] != [output.shape for output in found]:
            raise _RehearsalError("its channels are part of what the model returns, whose shape would change")
        # A norm may level at the end what went wrong before it, so the layers' outputs are compared too.
        inside = [pair for name in before.keys() & after for pair in self._kept(name, cuts, before[name], after[name])]
        return max(_difference(expected, found), *(_difference([one], [other]) for one, other in inside), 0.0)

    @contextmanager
    def _watched(self, model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
        """The outputs of the layers' calls inside the block, by the layers' names."""
        outputs: dict[str, list[Tensor]] = {}

        def seen(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                outputs.setdefault(name, []).append(tensors_in(output)[0].detach().clone())

            return hook

        layers = ((name, model.get_submodule(name)) for name in self.replay.layers)
        with hooked(layer.register_forward_hook(seen(name)) for name, layer in layers):
            yield outputs

    def _kept(
        self, name: str, cuts: Cuts, before: list[Tensor], after: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A layer's outputs with channels set to 0, and in the cut copy, of the channels that are kept."""
        layer, gone = self.replay.layers[name], set[int]()
        for (node, cut), channels in cuts.items():
            if node.module is layer and self.graph.is_out_channel_pruning_fn(cut):
                gone |= set(channels)
        calls = min(len(before), len(after))  # the first run of a model begins with calls that look at its states
        for one, other in zip(before[-calls:], after[-calls:], strict=True):
            axis = channel_axis(layer, one)
            kept = [channel for channel in range(one.shape[axis]) if channel not in gone]
            one = one.index_select(axis, torch.tensor(kept, dtype=torch.long, device=one.device))
            if one.shape == other.shape:
                yield one, other

    @contextmanager
    def _in_float64(self) -> Iterator[bool]:
        """Inside the block both models and their inputs are float64; false where a part of the model makes float32."""
        models, inputs = (self.replay.twin, self._copy), self.replay.inputs
        kinds = {parameter.dtype for parameter in self._copy.parameters() if parameter.is_floating_point()}
        if kinds != {torch.float32}:
            yield kinds == {torch.float64}
            return
        try:
            self.replay.inputs = _doubled(inputs)
            for model in models:
                model.double()
            try:
                with linear_neurons(self.replay.twin, self.replay.library):
                    self.replay.forward(self.replay.twin, self.replay.inputs)
                exact = True
            except RuntimeError:
                exact = False
            yield exact
        finally:
            self.replay.inputs = inputs
            for model in models:
                model.float()

    @contextmanager
    def _cut(self, cuts: Cuts) -> Iterator[None]:
        """Inside the block the copy is without these channels."""
        with ExitStack() as stack:
            for (node, cut), channels in cuts.items():
                module, pruner = node.module, cut.__self__  # type: ignore[attr-defined] # a bound method
                pruner.pruning_dim = node.pruning_dim
                if isinstance(module, nn.Parameter):
                    owner, attribute = self._owner(self._copy, module)
                    stack.enter_context(_put_back(owner))
                    setattr(owner, attribute, cut(getattr(owner, attribute), channels))
                elif module in self._names:
                    twin = self._copy.get_submodule(self._names[module])
                    if isinstance(pruner, NeuronPruner):
                        pruner.axes[twin] = pruner.axes[module]
                    for part in twin.modules():
                        stack.enter_context(_put_back(part))
                    cut(twin, channels)
            yield

    def _silenced(self, cuts: Cuts) -> list[Tensor]:
        """The outputs of the model with these channels set to 0."""
        sent: dict[nn.Module, list[int]] = {}
        read: dict[nn.Module, list[int]] = {}
        with ExitStack() as stack:
            for (node, cut), channels in cuts.items():
                module = node.module
                if isinstance(module, nn.Parameter):
                    value = getattr(*self._owner(self.replay.twin, module)).data
                    stack.callback(value.copy_, value.clone())
                    value.movedim(node.pruning_dim, 0)[channels] = 0
                elif module in self._names:
                    twin = self.replay.twin.get_submodule(self._names[module])
                    if self.replay.is_layer(module) and not self.graph.is_out_channel_pruning_fn(cut):
                        read[twin] = channels
                    elif self.replay.is_layer(module) or isinstance(module, nn.modules.batchnorm._NormBase):
                        sent[twin] = channels
            return outputs_without(self.replay, sent, read)

    def _owner(self, copy: nn.Module, parameter: nn.Parameter) -> tuple[nn.Module, str]:
        owner, _, attribute = self.graph._param_to_name[parameter].rpartition(".")
        return copy.get_submodule(owner), attribute


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    """Give a module its attributes back, with the values that its tensors and containers had."""
    held = dict(vars(module))
    contents = {name: value.copy() for name, value in held.items() if isinstance(value, dict | list | set)}
    values = [value for each in (held, module._parameters, module._buffers) for value in each.values()]
    data = [(value, value.detach().clone()) for value in values if isinstance(value, Tensor)]
    try:
        yield
    finally:
        for name, content in contents.items():
            held[name].clear()
            (held[name].extend if isinstance(content, list) else held[name].update)(content)
        vars(module).clear()
        vars(module).update(held)
        for tensor, value in data:
            tensor.data = value


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference, as a part of the largest value of the same output."""
    if not all(output.isfinite().all() for output in found):
        return inf
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.numel():
            size, difference = float(one.double().abs().max()), float((one.double() - other.double()).abs().max())
            worst = max(worst, difference / size if size else inf if difference else 0.0)
    return worst


def _doubled(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: _doubled(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(map(_doubled, inputs))
    return inputs.double() if isinstance(inputs, Tensor) and inputs.dtype == torch.float32 else inputs
