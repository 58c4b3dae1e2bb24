"""The graph of a model that ran: which outputs, of this time step or the one before, add up to each module's input."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sbc_plugin.errors import SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.nir.network import Edge, running_order
from sbc_plugin.nir.neuron_nodes import Gain
from sbc_plugin.nir.wiring import Wiring, free
from sbc_plugin.norse.autograd_paths import origins
from sbc_plugin.norse.neurons import is_spiking

INPUT = ""  # the name under which the model's input is followed; no module inside the model has it
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
EXACT = 1e-9  # of the largest value: float64, summed in another order
ROUNDED = 1e-6  # where a model puts its answers into float32
MOST_MEETING = 6  # outputs at one node: each may be of this step or of the last


@dataclass
class Record:
    """What one module was seen to do.

    Attributes:
        inputs: of its calls.
        outputs: of its calls.
        sources: names of the modules whose outputs its inputs depend on.
        between: what lies on the way from them that is no sum of modules or factor: (source, operation).
        bent: whether some of it is not linear.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)
    between: set[tuple[str, str]] = field(default_factory=set)
    bent: bool = False

    def add(self, taken: Tensor, output: Tensor) -> None:
        """Note one call."""
        self.inputs.append(taken.detach())
        self.outputs.append(output.detach())
        for origin, path in origins(taken):
            self.sources.add(origin.name)
            linear = "a sum or mean" if path.reduced else "concatenation" if path.stacked else ""
            if operation := path.nonlinear or linear:
                self.between.add((origin.name, operation))
                self.bent |= bool(path.nonlinear)


class TracedGraph:
    """Modules and edges of a run, found from the end to the input.

    Args:
        modules: by name, in eval mode and float64.
        records: what each did, in the order in which they ran; of :data:`INPUT` one output, (T, B, ...).

    Raises:
        UnsupportedModelError: a module gives numbers that are not finite.
    """

    def __init__(self, modules: dict[str, nn.Module], records: dict[str, Record]) -> None:
        for name, record in records.items():
            if not all(output.isfinite().all() for output in record.outputs):
                raise UnsupportedModelError(f"module {name!r} gives NaN or infinity; repair its values")
        self.modules, self.records = dict(modules), records
        self.steps, self.sequences = records[INPUT].outputs[0].shape[:2]
        self.ends = (free("input", modules), free("output", modules))
        self.edges: list[Edge] = []

    def end(self, output: str | None, answer: Record) -> Tensor:
        """Find all edges that lead to the end: a module of this name, or what the model returned. What it gave there.

        Raises:
            SettingsError: no such module, or one whose output stays 0.
            UnsupportedModelError: something on the way is no sum of outputs.
        """
        if output is not None and output not in self.records:
            raise SettingsError(f"output={output!r} is no module that ran; choose one of {', '.join(self.modules)}")
        if output is not None:
            self.edges.append((output, self.ends[1]))
            waiting, found = [output], self._over_time(output, self.records[output].outputs)
        else:
            found = answer.outputs[0]
            try:
                waiting = self._connect(self.ends[1], found, answer)
            except UnsupportedModelError as error:
                last = sorted(answer.sources - {INPUT}) or list(self.modules)[-1:]
                raise UnsupportedModelError(
                    f"what the model returns: {error}; give output={last[-1]!r} to end the network with that module"
                ) from error
        reached = set[str]()
        while waiting:
            name = waiting.pop()
            if name in reached or name == INPUT:
                continue
            reached.add(name)
            record = self.records[name]
            with in_layer(name):
                waiting += self._connect(name, self._over_time(name, record.inputs), record)
        self.modules = {name: module for name, module in self.modules.items() if name in reached | self._added()}
        return found

    def wiring(self) -> Wiring:
        """Modules and edges for a graph of NIR, one step a call; BatchNorm is folded away.

        Raises:
            UnsupportedModelError: a BatchNorm that follows no layer of its own.
        """
        modules, edges = {name: self._of_one_step(name) for name in self.modules}, list(self.edges)
        for name in [name for name, module in modules.items() if isinstance(_lifted(module), NORMS)]:
            before, behind = [a for a, b in edges if b == name], [edge for edge in edges if edge[0] == name]
            alone = len(before) == 1 and [b for a, b in edges if a == before[0]] == [name]
            layer = _lifted(modules[before[0]]) if alone and before[0] in modules else None
            norm: Any = _lifted(modules[name])
            if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or norm.running_mean is None:
                raise UnsupportedModelError(
                    f"layer {name!r}: BatchNorm has no counterpart in NIR; it can be folded into a layer before it "
                    "that leads nowhere else, by its running statistics"
                )
            fold = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            folded = fold(layer, norm)  # type: ignore[type-var]
            lifted = isinstance(modules[before[0]], norse.Lift)
            del modules[name]
            modules[before[0]] = norse.Lift(folded) if lifted else folded
            edges = [edge for edge in edges if name not in edge] + [(before[0], b) for _, b in behind]
        order, _ = running_order(edges, self.ends[0])
        edges.sort(key=lambda edge: (order.index(edge[1]), order.index(edge[0])))
        return Wiring(modules, edges, self.ends, None, 1)

    def _of_one_step(self, name: str) -> nn.Module:
        """The module as it acts on one step (B, ...); a Flatten that took whole sequences counts axes otherwise."""
        module = self.modules[name]
        if not isinstance(module, nn.Flatten) or name not in self.records:
            return module
        whole = self._is_whole(self.records[name].inputs)
        first, last = (axis - 1 if whole and axis > 0 else axis for axis in (module.start_dim, module.end_dim))
        return nn.Flatten(first, last)

    def _added(self) -> set[str]:
        return self.modules.keys() - self.records.keys()

    def _is_whole(self, calls: list[Tensor]) -> bool:
        """Whether a single call took the whole sequences, (T, B, ...)."""
        return len(calls) == 1 and tuple(calls[0].shape[:2]) == (self.steps, self.sequences)

    def _over_time(self, name: str, calls: list[Tensor]) -> Tensor:
        """A module's calls as (T, B, ...); in the first step a module need not be called.

        Raises:
            UnsupportedModelError: it is called more or less often than once a step.
        """
        first = calls[0]
        if self._is_whole(calls):
            return first
        if len(calls) == 1 and len(first) == self.steps * self.sequences:  # a layer that takes all steps as one batch
            return first.reshape(self.steps, self.sequences, *first.shape[1:])
        late, alike = self.steps - len(calls), all(call.shape == first.shape for call in calls)
        if late in (0, 1) and alike and len(first) == self.sequences:
            return torch.stack([torch.zeros_like(first)] * late + calls)
        raise UnsupportedModelError(
            f"module {name!r} is called {len(calls)} times in {self.steps} time steps, and a node of NIR acts once in "
            "each; give each call a module of its own"
        )

    def _connect(self, name: str, taken: Tensor, record: Record) -> list[str]:
        """Add the edges into a node, of which this was its input (T, B, ...); the modules that they come from.

        Raises:
            SettingsError: a module whose output stays 0, so that nothing shows what becomes of it.
            UnsupportedModelError: its input is no sum of their outputs.
        """
        names = sorted(record.sources)
        if not names:
            raise UnsupportedModelError(
                "no way leads from the model's input to it; detach, no_grad or a comparison hides the way"
            )
        outputs = []
        for source in names:
            outputs.append(self._over_time(source, self.records[source].outputs))
            if not outputs[-1].any():
                shown = "the example" if source == INPUT else f"module {source!r}"
                raise SettingsError(f"{shown} gives nothing but 0; take an example in which it is active")
        factors = self._factors(taken, outputs)
        if factors is None or not self._holds_everywhere(record):
            raise UnsupportedModelError(_misfit(names, record.between))
        for source, output, factor in zip(names, outputs, factors, strict=True):
            self.edges.append((self._adapted(source, output, taken, factor), name))
        return names

    def _holds_everywhere(self, record: Record) -> bool:
        """Whether what fits this run fits all: of spikes, which are 0 or 1, every function is a factor."""
        spikes = all(source != INPUT and _spikes(self.modules[source]) for source in record.sources)
        return not record.bent or (spikes and len(record.sources) == 1)

    def _factors(self, taken: Tensor, outputs: list[Tensor]) -> list[Tensor] | None:
        """The factors with which outputs, each of this step or the last, add up to an input; None: they do not.

        One number for each output; of a single one also a number for each of its values in a step.
        """
        if tuple(taken.shape[:2]) != (self.steps, self.sequences) or len(outputs) > MOST_MEETING:
            return None
        outputs = [output.mean((3, 4)) if _averaged(output, taken) else output for output in outputs]
        if any(output[0, 0].numel() != taken[0, 0].numel() for output in outputs):
            return None
        target = taken.reshape(-1).double()
        columns = [[output.reshape(-1), _delayed(output).reshape(-1)] for output in outputs]
        choices = [torch.stack(choice, 1) for choice in product(*columns)]
        bound = (EXACT if taken.dtype == torch.float64 else ROUNDED) * max(1.0, float(target.abs().max()))
        for matrix in choices:
            if float((matrix.sum(1) - target).abs().max()) <= bound:
                return list(torch.ones(len(outputs), dtype=torch.float64, device=taken.device))
        for matrix in choices:
            found = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd")
            error = float((matrix @ found.solution - target[:, None]).abs().max())
            if int(found.rank) == len(outputs) and error <= bound:
                return list(found.solution[:, 0])
        for output in (outputs[0], _delayed(outputs[0])) if len(outputs) == 1 else ():
            sent, arrived = output.flatten(0, 1).flatten(1), taken.flatten(0, 1).flatten(1).double()
            gain = (sent * arrived).sum(0) / (sent * sent).sum(0)
            if float((gain * sent - arrived).abs().max().nan_to_num(torch.inf)) <= bound:
                return [gain.reshape(taken.shape[2:])]
        return None

    def _adapted(self, source: str, output: Tensor, taken: Tensor, factor: Tensor) -> str:
        """The node whose output arrives: the source itself, or one that flattens or scales what it sends.

        Raises:
            UnsupportedModelError: its shape changes otherwise.
        """
        name = self.ends[0] if source == INPUT else source
        if _averaged(output, taken):
            name = self._inserted(f"{name}_mean", nn.AvgPool2d((output.shape[3], output.shape[4])), name)
            name = self._inserted(f"{name}_flat", nn.Flatten(), name)
        elif output.shape != taken.shape:
            if taken.dim() != 3:
                raise UnsupportedModelError(
                    f"{source!r} sends {tuple(output.shape[2:])} and {tuple(taken.shape[2:])} arrives; NIR's Flatten "
                    "joins axes and does nothing else"
                )
            name = self._inserted(f"{name}_flat", nn.Flatten(), name)
        if (factor != 1).any():
            name = self._inserted(f"{name}_scale", Gain(factor.expand(taken.shape[2:]).clone()), name)
        return name

    def _inserted(self, name: str, module: nn.Module, before: str) -> str:
        name = free(name, self.modules)
        self.modules[name] = module
        self.edges.append((before, name))
        return name


def _misfit(sources: list[str], between: set[tuple[str, str]]) -> str:
    before = " and ".join("the model's input" if source == INPUT else repr(source) for source in sources)
    operations = ", ".join(sorted({operation for _, operation in between}))
    return (
        f"{operations or 'something'} between {before} and it is what no node of NIR does; they hold weights, average "
        "and sum pooling, flattening, constant factors, sums, and one step of delay in loops"
    )


def _lifted(module: nn.Module) -> nn.Module:
    inner: nn.Module = getattr(module, "lifted_module", module)
    return inner


def _spikes(module: nn.Module) -> bool:
    return any(map(is_spiking, module.modules()))


def _averaged(output: Tensor, taken: Tensor) -> bool:
    """Whether images (T, B, C, H, W) went on as one number a channel, (T, B, C)."""
    return output.dim() == 5 and output.shape[:3] == taken.shape and output[0, 0, 0].numel() > 1


def _delayed(output: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(output[:1]), output[:-1]])
