"""``sbc_mode``: used like Brevitas' ``gptq_mode``, but layers see whole sequences, filtered by the membrane."""

import warnings
from collections.abc import Sequence
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sbc_plugin.brevitas.cells import LAYER
from sbc_plugin.brevitas.gptq_options import GptqOptions, check_accumulators, check_class, device_of
from sbc_plugin.brevitas.held_scales import layers_of
from sbc_plugin.brevitas.layer_solver import LayerSolver
from sbc_plugin.brevitas.layers import copy_model, is_rounded
from sbc_plugin.brevitas.sequences import Recorder
from sbc_plugin.calibration.forward import eval_mode
from sbc_plugin.compression import layer as solving
from sbc_plugin.core.solution import Solution
from sbc_plugin.errors import CalibrationError, SettingsError, UnsupportedModelError, in_layer
from sbc_plugin.layers import Forward, SpikingLayer
from sbc_plugin.settings import Calibration

HELD = "its quantizer followed the weight at every call; scale and zero point are parameters now"


class sbc_mode:  # noqa: N801, as Brevitas names its modes
    """GPTQ with the spike-train Hessian on the quantised layers of a Brevitas model, one ``update()`` a layer.

    It takes the keywords of ``gptq_mode``, in the same order, so that one name can stand in the place of the other. ::

        with torch.no_grad(), sbc_mode(model) as sbc:
            for _ in range(sbc.num_layers):
                for x in loader:
                    sbc.model(x)
                sbc.update()

    Minimises the Van Rossum distance by ``H = 2 (MX)^T (MX) / count`` (docs/theory.md, equation 2), on the grid that
    each layer's quantizer has. A model without spiking neurons gets M = I, so loops written for images work as they
    are. Inside the block ``model(x)`` runs in eval mode and without gradients, and a layer whose turn has not come
    computes with its dense weight. How calls become sequences:

    - ``model(x)``: one whole sequence (T, B, ...); a step model is driven over it, outputs stacked.
    - ``model(x_t, state)``: one step; ``state=None`` begins a sequence, another state goes on with it.
    - with ``forward``: ``model(batch)`` is ``forward(model, batch)``, one whole sequence.

    Args:
        model: with Brevitas layers. Quantizers whose scale follows the weight hold a scale from then on, see ``notes``:
            the one that they have, or one that moved while the weight was solved, if that has less loss. What is no
            integer of 2 to 8 bits rounded to nearest is rounded by the layer's own quantizer, in the same way, slower.
        group_of_parallel_layers: lists of names of layers that are solved in one update, on what the layers before the
            first of them send.
        inplace: False works on a copy, ``self.model``.
        create_weight_orig: store each dense weight as a buffer ``weight_orig``, on the CPU, with which Brevitas
            computes where quantisation is switched off; one that a layer has already stays. ``state_dict`` has it, see
            :func:`~sbc_plugin.brevitas.held_scales.match_state`.
        use_quant_activations: False switches the quantizers of activations and biases off inside the block.
        num_blocks: how many blocks a layer's columns are divided into; None: of 128 columns. It changes speed only.
        return_forward_output: False makes calls return None, as those of ``gptq_mode`` do unless asked for more. A loop
            over time needs the states, so they are returned here.
        act_order: columns with the largest H_jj first; False takes them from left to right, which is the default of
            ``gptq_mode``. Layers with a mask are solved as ``compress`` does it, always with the largest first.
        gptq_class: None, or Brevitas' ``GPTQ``, whose place this solver takes; others are refused.
        device: where Hessians are kept and solved; None or "same": where the weights are.
        dtype: that is solved in. torch.float32, as in Brevitas, is faster; a code that is nearly a tie may then differ.
        damping: fraction of mean diag H added to the diagonal.
        order: "sequential" (each layer on what the already quantised ones before it send) or "one-shot" (all Hessians
            from the first pass, on the dense network; later passes are not needed).
        mask: name -> mask of the weight's shape, True = kept; other weights become exactly 0. The kept ones move to
            their optimum on the mask first, and scales are chosen for what they are then: the integers and scales of
            ``compress``. Quantizers that are not of this package, and groups in convolutions, keep their scales.
        keep_zeros: weights that are zero stay zero, in the same way.
        forward: ``forward(model, batch)`` runs one whole sequence.
        temporal: False is the baseline M = I.
        a2q_layer_filter_fnc: of ``a2gptq_mode``, as the next two; refused, because accumulators are not bounded here.
        max_accumulator_bit_width: see above.
        max_accumulator_tile_size: see above.

    Attributes:
        model: the model.
        num_layers: updates needed: the quantised layers, those of a group together. Layers that feed one neuron through
            a feedback loop are solved together in one update, so the last updates may find nothing left to do.
        solutions: name of a solved layer -> its solution.
        skipped: quantised layers that are only rounded, and approximations: name -> reason; complete after the first
            call. Layers that are no Linear or convolution are warned about.
        notes: name -> what was done to a layer's quantizer.

    Raises:
        SettingsError: a setting out of range or refused, or a mask that does not fit.
        UnsupportedModelError: no quantised layer, or a quantizer that rounds at random or needs its input's.
        GridMovedError: a quantizer that derives what it rounds to anew at every call, and has no form that holds it.
    """

    def __init__(
        self,
        model: nn.Module,
        group_of_parallel_layers: Sequence[Sequence[str]] | None = None,
        inplace: bool = True,
        create_weight_orig: bool = True,
        use_quant_activations: bool = True,
        num_blocks: int | None = None,
        return_forward_output: bool = True,
        act_order: bool = True,
        gptq_class: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
        *,
        damping: float = 0.01,
        order: str = "sequential",
        mask: dict[str, Tensor] | None = None,
        keep_zeros: bool = False,
        forward: Forward | None = None,
        temporal: bool = True,
        a2q_layer_filter_fnc: Any = None,
        max_accumulator_bit_width: int | None = None,
        max_accumulator_tile_size: int | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise SettingsError(f"dtype={dtype} cannot hold a Hessian; use torch.float64 or torch.float32")
        check_class(gptq_class)
        check_accumulators(
            max_accumulator_bit_width=max_accumulator_bit_width,
            max_accumulator_tile_size=max_accumulator_tile_size,
            a2q_layer_filter_fnc=a2q_layer_filter_fnc,
        )
        self.options = GptqOptions(
            group_of_parallel_layers or (), create_weight_orig, use_quant_activations, num_blocks, return_forward_output
        )
        self.calibration = Calibration(order=order, temporal=temporal, damping=damping, device=device_of(device))
        self.model = model if inplace else copy_model(model)
        self.forward, self.act_order, self.dtype = forward, act_order, dtype
        self.mask, self.keep_zeros = dict(mask or {}), keep_zeros
        self.num_layers = 0
        self.solutions: dict[str, Solution] = {}
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self._waiting: list[list[SpikingLayer]] | None = None
        self._entered = self._running = False

    def __enter__(self) -> "sbc_mode":
        if self._entered:
            raise SettingsError("this sbc_mode was entered before; make a new one")
        self._modules = layers_of(self.model)
        if not self._modules:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no Brevitas layer with a quantised weight; call quantize_layers first"
            )
        self.num_layers = self.options.updates(self._modules)
        columns = "descending" if self.act_order else "given"
        self._solver = LayerSolver(
            self._modules, self.options, self.calibration.damping, columns, self.mask, self.keep_zeros
        )
        self.skipped = self._left_out()
        self._recorder = Recorder(self.model, self.calibration, self.forward)
        with eval_mode(self.model):  # some quantizers round otherwise while they are trained
            self._solver.read()
        self.notes = dict.fromkeys(self._solver.held, HELD)
        self._entered, self._original = True, self.model.forward
        self._own_forward = "forward" in vars(self.model)

        @wraps(self._original)  # so that a step model is still known by its signature
        def recorded(*args: Any, **kwargs: Any) -> Any:
            return self._call(args, kwargs)

        self.model.forward = recorded
        self._activations = self.options.activations(self.model)
        self._activations.__enter__()
        self._solver.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._solver.close()
        self._activations.__exit__(kind, error, trace)
        if self._own_forward:
            self.model.forward = self._original
        else:
            del self.model.forward
        self._recorder.listen([])
        if kind is None:
            for module in self._modules.values():
                self.options.keep_original(module, module.weight)

    def update(self) -> None:
        """Quantise the next layer with what the calls since the last update have shown.

        Raises:
            CalibrationError: no data, silent data, or sequences of one step.
            SingularHessianError: the damped Hessian is not positive definite.
            GridMovedError: the quantizer sees other integers than were written; the layer has its old weight again.
        """
        if self._waiting is None:
            raise CalibrationError("update() before any data; call sbc.model(x) on each calibration batch first")
        self._recorder.finish()
        if not self._waiting:
            return
        statistics = self._recorder.statistics
        for layer in self._waiting[0]:
            with in_layer(layer.name):
                accumulator = statistics[layer.name].accumulator
                if accumulator.count == 0:
                    raise CalibrationError("no data since the last update(); call sbc.model(x) on each batch before it")
                hessian = accumulator.hessian().to(self.dtype)
                solving.check_active(hessian)
                with eval_mode(self.model):
                    self.solutions[layer.name] = self._solver.solve(layer, hessian)
        for layer in self._waiting.pop(0):
            del statistics[layer.name]
        self._recorder.listen(self._waiting[0] if self._waiting and self.calibration.order == "sequential" else [])

    def _left_out(self) -> dict[str, str]:
        """Layers that are no Linear or convolution: name -> reason; warned about, as ``gptq_mode`` does."""
        left = {
            name: f"{type(module).__name__} has no matrix form here; its weight is rounded by its own quantizer"
            for name, module in self.model.named_modules()
            if name not in self._modules and is_rounded(module)
        }
        if left:
            message = "; ".join(f"layer {name!r}: {reason}" for name, reason in left.items())
            warnings.warn(f"sbc_mode leaves out {message}", stacklevel=3)
        return left

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._running:
            return self._original(*args, **kwargs)
        self._running = True
        try:
            if self._waiting is None:
                self._find(args, kwargs)
            # A model that is one single layer is called as a whole, so that its own hooks see the call.
            run = self.model if self.model in self._modules.values() else self._original
            output = self._recorder.call(args, kwargs, run)
            return output if self.options.return_forward_output else None
        finally:
            self._running = False

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layers, reasons = self._recorder.find(args, kwargs)
        chosen = [layer for layer in layers if self._solver.parts(layer)]
        reached = {part.name for layer in chosen for part in self._solver.parts(layer)}
        left = [name for name in self._modules if name not in reached]
        self.skipped |= {name: reasons.get(name.removesuffix(LAYER), "never called") for name in left}
        self.skipped |= {layer.name: layer.note for layer in chosen if layer.note}
        if not chosen:
            raise UnsupportedModelError(f"no quantised layer was reached: {self.skipped}")
        turns = self.options.turns(chosen)
        self._recorder.listen(turns[0] if self.calibration.order == "sequential" else chosen)
        self._waiting = turns
