"""``compress``: check what was asked for, look at the model, plan, carry the plan out, report."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, wraps
from os import PathLike
from typing import Any, ParamSpec, TypeAlias

import torch
from torch import nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.batches import holds_values
from sbc_plugin.calibration.blocks import in_one_pass
from sbc_plugin.calibration.calibrate import CalibrationStatistics, check_statistics
from sbc_plugin.calibration.forward import Runner
from sbc_plugin.calibration.hessians import DEFAULT
from sbc_plugin.calibration.memory import spool_limit
from sbc_plugin.calibration.plain import refuse_computed
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.calibration.progress import Callback, Tracker
from sbc_plugin.calibration.shares import peek, repeatable
from sbc_plugin.calibration.sums import check_same
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.compression.backends import backend_called
from sbc_plugin.compression.budgets import check_fit
from sbc_plugin.compression.clock import Clock
from sbc_plugin.compression.expectations import expectations
from sbc_plugin.compression.plan import given_statistics, plan
from sbc_plugin.compression.resume import Job, journal_in
from sbc_plugin.compression.run import all_or_nothing, run
from sbc_plugin.compression.selection import selected
from sbc_plugin.compression.sharing import Shared
from sbc_plugin.compression.stage import Stage
from sbc_plugin.compression.trial import tried_by_all
from sbc_plugin.errors import CalibrationError, SettingsError, in_layer
from sbc_plugin.evaluation.operations import weights_left_alone
from sbc_plugin.evaluation.recipe import Recipe, filled
from sbc_plugin.evaluation.report import Report, joined
from sbc_plugin.evaluation.rule import Rule, Selector, What, rules_of, selectors_of
from sbc_plugin.layers import Forward, SpikingLayer, library_of
from sbc_plugin.settings import Budget, Calibration, Prune, Quantize

Given = ParamSpec("Given")
Result: TypeAlias = tuple[nn.Module, Report]


def _noting_autocast(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Compress with autocast switched off, and say so in the report where it was on."""

    @wraps(function)
    def noted(*arguments: Given.args, **named: Given.kwargs) -> Result:
        with autocast_off() as devices:
            model, report = function(*arguments, **named)
        if not devices:
            return model, report
        note = f"switched off while compressing (on {' and '.join(devices)}), where layers have to compute as they are"
        return model, replace(report, skipped=joined(report.skipped, {"autocast": note}))

    return noted


@ranks.joined()
@_noting_autocast
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
    progress: bool | Callback | None = None,
    backend: str | None = None,
    batch_first: bool | None = None,
    statistics: CalibrationStatistics | None = None,
    checkpoint: str | PathLike[str] | None = None,
    ignore: Sequence[Selector] = (),
    rules: Sequence[tuple[Selector, What] | Rule] = (),
    budget: Budget | None = None,
) -> tuple[nn.Module, Report]:
    """Prune and quantise a trained spiking network in one call, without labels, keeping its spike trains.

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
            in as measured best: "sbc" prunes weights of silent neurons first, and takes label-free gradient steps
            after, where accuracy is expected to be lost without; ``Calibration(tuning=0)`` is the solvers alone. The
            report holds what was used.
        forward: ``forward(model, batch)`` runs one whole sequence. The default calls the model in the way in which it
            is seen to take time, see :func:`sbc_plugin.norse.default_forward`.
        inplace: change ``model`` itself, all layers or none; otherwise it is not touched.
        progress: show a progress bar; None = on a terminal; or a function, which is told of each stage and each item in
            it by a :class:`sbc_plugin.calibration.progress.Progress`: stage n of m, and the time that remains. Stages
            are also logged to "sbc_plugin", at the level INFO.
        backend: "brevitas" returns a model of Brevitas layers with the same integers and scales; None plain layers.
        batch_first: whether the batches are (B, T, ...); None: as the model itself takes them, and (T, B, ...) for a
            step model. Without effect on a ``forward`` of the user's own.
        statistics: what :func:`sbc_plugin.calibrate` gathered on this model, instead of gathering it again; with data
            of the same kind, which tuning and all stages but the first still read.
        checkpoint: a folder, made if there is none, that keeps what is computed: after an interruption the same call
            goes on there, and ends in the same bits; a finished one returns at once. It needs data that is the same
            each time it is read (``shuffle=False``); an iterator is kept in memory. Source: docs/resume.md.
        ignore: selectors of layers that stay exactly as they are, and that no budget counts: a layer's name in the
            report, a pattern such as "features.*", "re:" and a regular expression of the whole name, a class such as
            ``nn.Conv2d``, or "type:Conv2d". Source: docs/recipes.md.
        rules: pairs of a selector and what its layers get: ``Prune``, ``Quantize``, a tuple of both, or None to leave
            them alone. The first rule that matches a layer counts. What a rule gives has a budget of its own over the
            layers that the rule is for; what it does not give comes from ``prune`` and ``quantize``, whose budgets are
            over all layers that take part in them.
        budget: what the whole network may cost, in the place of ``prune``, ``quantize`` and ``rules``: zeros and bits
            of each layer follow from it. The report's note says what was asked for and what is delivered.

    Returns:
        The compressed model, without a wrapper such as ``torch.compile`` or ``DataParallel``, and a report with a row a
        layer.

    Raises:
        SettingsError: nothing to do, an unknown method, settings that do not fit the model, or a selector that matches
            no layer.
        UnsupportedModelError: a model, neuron or weight without a rule.
        CalibrationError: no data, data that does not fit, or a layer that stays silent.
        SingularHessianError: a Hessian that damping does not make invertible.
        CheckpointError: the folder is of another job, in use, or cannot be written; or the data changes.
    """
    started, clock, tracker = time.perf_counter(), Clock(), Tracker.of(progress)
    # 1. Check what was asked for.
    selections = selectors_of(ignore), rules_of(rules)
    asked = Recipe(method, prune, quantize, calibration, *selections, backend, batch_first, budget)
    check_statistics(statistics)
    if method == "obc":
        calibration = replace(calibration, temporal=False)
    adapter = None if backend is None else backend_called(backend)
    if adapter is not None and not asked.grids:
        raise SettingsError(f"backend={backend!r} holds quantised weights; give quantize=Quantize(bits)")
    with clock("model"):
        # 2. Look at the model and at the first batch, the same on all ranks.
        model = unwrapped(model)
        library = library_of(model)
        first, data = peek(calibration_data)
        target = model if inplace else library.copy_model(model)
        runner = Runner.of(target, first, forward, batch_first, library)
        layers, skipped = runner.find_layers(first, calibration.temporal)
        settings, alone = selected(layers, asked, skipped)
        counted = weights_left_alone(target, layers)
        layers = [layer for layer in layers if layer.name in settings]
        skipped |= {layer.name: layer.note for layer in layers if layer.note} | alone
        others = weights_left_alone(target, layers)
        _check_weights(layers)
        given: dict[str, Any] = {"method": method, "prune": prune, "quantize": quantize, "calibration": calibration}
        given |= {"batch_first": batch_first, "statistics": None if statistics is None else statistics.checksum}
        given |= asked.selections | ({} if budget is None else {"budget": budget})
        check_same(target, layers, {"call": "compress"} | given | {"backend": backend})
        check_fit(layers, settings)
        grids = {name: own.quantize for name, own in settings.items() if own.quantize is not None}
        if adapter is not None:
            adapter.check_backend(layers, grids)
        # 3. Plan.
        outputs = calibration.outputs or ("values" if holds_values(first) else "classes")
        with_outputs = replace(calibration, outputs=outputs)
        shared = Shared([layer.weight() for layer in layers], first, str(replace(with_outputs, tuning=None)))
        trial = partial(shared.once, "trial", partial(tried_by_all, runner, layers, first, with_outputs))
        todo = plan(method, settings, calibration, trial, budget)
        todo = replace(todo, uncounted=frozenset(others) - frozenset(counted))
        if todo.steps or budget is not None:
            todo = replace(todo, calibration=replace(todo.calibration, outputs=outputs))
    with clock("data"):
        again = todo.reads_data_again or not in_one_pass(layers, calibration)
        data = repeatable(data, spool_limit(calibration.memory_bytes)) if again else data
    tracker.expected, tracker.estimates = expectations(todo, layers)
    known = None
    if statistics is not None:
        known = statistics.by_layer(runner, layers, calibration)
        skipped |= given_statistics(todo)
    # 4. Carry it out: everything, or nothing.
    safe = all_or_nothing(target, layers) if inplace else nullcontext()  # what becomes of a copy does not matter
    with journal_in(checkpoint, Job(runner, first, data, given)) as (journal, data), safe:
        work = Stage(runner, layers, data, todo.calibration, tracker, todo.layers, journal, clock)
        outcome = run(todo, work, first, known)
        notes = joined(skipped | todo.notes, outcome.state.notes)
        if adapter is not None:
            target, left = adapter.into_backend(target, layers, grids, outcome.state.grids)
            notes = joined(notes, left)
        ranks.meet("the compressed model")
    # 5. Report.
    used = replace(todo.calibration, tuning=outcome.steps(todo.calibration.tuning))
    decided = replace(todo.calibration, tuning=todo.reproducing(outcome.taken))
    recipe = filled(asked, todo.filled, decided)
    told: dict[str, Any] = {"method": method, "prune": recipe.prune, "quantize": quantize, "calibration": used}
    told |= {} if budget is None else {"budget": budget}
    seconds = time.perf_counter() - started
    report = Report(
        list(outcome.state.rows),
        notes,
        told | {name: value for name, value in recipe.to_dict().items() if name in ("ignore", "rules") and value},
        seconds,
        stages=clock.seconds | {"other": max(seconds - sum(clock.seconds.values()), 0.0)},
        left_alone=sum(weight.numel() for weight in others.values()),
        left_alone_zeros=sum(int((weight == 0).sum()) for weight in others.values()),
        recipe=recipe,
        warnings=dict(outcome.state.warnings),
        steps=list(outcome.taken),
    )
    return target, ranks.handed(report)


def _check_weights(layers: list[SpikingLayer]) -> None:
    for layer in layers:
        for part in layer.parts:
            if part.tensor is not part.tensor:  # made anew at each call
                with in_layer(part.name):
                    refuse_computed(part.attribute)
        if not layer.weight().isfinite().all():
            raise CalibrationError(f"layer {layer.name!r}: the weight holds NaN or infinity; repair the model first")
