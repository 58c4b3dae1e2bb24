"""``compress``: find the layers, calibrate, deal out the budget, solve, write back, report."""

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sbc_plugin.calibration.hessians import DEFAULT, peek
from sbc_plugin.compression.layer import SECOND_ORDER, Recipe
from sbc_plugin.compression.plan import filled, obstacle, steps_for
from sbc_plugin.compression.run import Pipeline
from sbc_plugin.compression.stage import Job
from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.evaluation.report import Report
from sbc_plugin.layers import Forward, backend_called, library_of
from sbc_plugin.settings import METHODS, Calibration, Prune, Quantize


@torch.inference_mode(False)  # around no_grad, which it would end: tuning takes gradients where it says so
@torch.no_grad()
def compress(
    model: nn.Module,
    calibration_data: Iterable[Any],
    *,
    method: str = "sbc",
    prune: Prune | None = None,
    quantize: Quantize | None = None,
    calibration: Calibration = DEFAULT,
    forward: Forward | None = None,
    inplace: bool = False,
    progress: bool | None = None,
    backend: str | None = None,
) -> tuple[nn.Module, Report]:
    """Prune and quantise a trained spiking network in one call, without retraining, keeping its spike trains.

    Minimises, layer by layer, the squared Van Rossum distance between dense and compressed spike trains through its
    surrogate Hessian ``H = 2 (MX)^T (MX) / count``. Source: docs/theory.md, equations 1 and 2 (arXiv 2506.03996).

    Args:
        model: a trained spiking network of a known library (Norse).
        calibration_data: iterable of batches. A batch is the input (T, B, ...), or a tuple, list or dict whose first
            item (or "x", "input", "data") is it, so a labelled DataLoader works as it is.
        method: "sbc"; or a baseline under the same budget: "obc" (M = I, not tuned unless asked for), "magnitude" or
            "rtn" (both: smallest weights to zero, then round to nearest).
        prune: how many weights go; None keeps all.
        quantize: the grid; None keeps floating point. With both, one pass does both.
        calibration: how Hessians are gathered, and how the result is tuned. What settings leave open (None) is filled
            in as measured best: "sbc" prunes weights of silent neurons first, in one or two rounds, and takes
            label-free gradient steps after; ``Calibration(tuning=0)`` is the solvers alone. The report holds what was
            used.
        forward: ``forward(model, batch)`` runs one whole sequence. The default calls a sequence model once and drives a
            step model over the first axis.
        inplace: change ``model`` itself, all layers or none; otherwise it is not touched.
        progress: show a progress bar; None = on a terminal.
        backend: "brevitas" returns a model of Brevitas layers with the same integers and scales; None plain layers.

    Returns:
        The compressed model and a report with a row a layer.

    Raises:
        SettingsError: nothing to do, an unknown method, or settings that do not fit the model.
        UnsupportedModelError: a model, neuron or weight without a rule.
        CalibrationError: no data, data that does not fit, or a layer that stays silent.
        SingularHessianError: a Hessian that damping does not make invertible.
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise SettingsError(f"method={method!r} is unknown; use one of {', '.join(map(repr, METHODS))}")
    if prune is None and quantize is None:
        raise SettingsError("nothing to do: give prune=Prune(sparsity), quantize=Quantize(bits), or both")
    _check_kind("prune", prune, Prune, "Prune(0.9)")
    _check_kind("quantize", quantize, Quantize, "Quantize(bits=4)")
    _check_kind("calibration", calibration, Calibration, "Calibration()")
    if method == "obc":
        calibration = replace(calibration, temporal=False)
    adapter = None if backend is None else backend_called(backend)
    if adapter is not None and quantize is None:
        raise SettingsError(f"backend={backend!r} holds quantised weights; give quantize=Quantize(bits)")
    library = library_of(model)
    first, data = peek(calibration_data)
    target = model if inplace else library.copy_model(model)
    layers, skipped = library.find_layers(target, first, forward, calibration.temporal)
    skipped |= {layer.name: layer.note for layer in layers if layer.note}
    dense = {layer.name: layer.weight() for layer in layers}
    for name, weight in dense.items():
        if not weight.isfinite().all():
            raise CalibrationError(f"layer {name!r}: the weight holds NaN or infinity; repair the model first")
    if adapter is not None and quantize is not None:
        adapter.check_backend(layers, quantize)
    steps = calibration.tuning
    if steps is None:
        steps = steps_for(method, prune, quantize)
        if steps and (reason := obstacle(library, target, layers, first, forward, calibration.outputs == "classes")):
            steps, skipped["tuning"] = 0, f"not tuned: {reason}"
        calibration = replace(calibration, tuning=steps)
    if prune is not None:
        prune = filled(prune, steps if method in SECOND_ORDER else 0, calibration.order)
    job = Job(
        library,
        target,
        layers,
        data,
        calibration,
        forward,
        progress,
        Recipe(method, prune, quantize, calibration.damping),
    )
    pipeline = Pipeline(job, skipped)
    rows = pipeline.run(dense)
    if adapter is not None and quantize is not None:
        target, left = adapter.into_backend(target, layers, quantize, job.grids)
        skipped |= {name: "; ".join(filter(None, [skipped.get(name), reason])) for name, reason in left.items()}
    if prune is not None and prune.rounds is None:
        prune = replace(prune, rounds=pipeline.rounds)
    settings = {"method": method, "prune": prune, "quantize": quantize, "calibration": calibration}
    return target, Report(rows, skipped, settings, time.perf_counter() - started)


def _check_kind(name: str, value: object, kind: type, example: str) -> None:
    if not isinstance(value, kind) and not (value is None and kind is not Calibration):
        raise SettingsError(f"{name}={value!r} is no {kind.__name__}; use {name}={example}")
