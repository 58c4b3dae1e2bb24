"""What the commands of ``sbc`` do; each takes the parsed command line and prints."""

import argparse
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from sbc_plugin.calibration import ranks
from sbc_plugin.calibration.shares import first_of
from sbc_plugin.checkpoint.atomic import check_target, replacing
from sbc_plugin.cli.results import import_plots, rehearse, write_model
from sbc_plugin.cli.settings import recipe_of
from sbc_plugin.cli.sources import load_data, load_model
from sbc_plugin.cli.spike_files import Batches
from sbc_plugin.cli.torchrun import under_torchrun
from sbc_plugin.compression.compress import compress as compress_model
from sbc_plugin.errors import CheckpointError, CompressionError, SettingsError
from sbc_plugin.evaluation.comparing import compare as compare_models
from sbc_plugin.evaluation.evaluate import Evaluation, evaluate
from sbc_plugin.evaluation.inspection import inspect as inspect_model
from sbc_plugin.evaluation.report import Report
from sbc_plugin.evaluation.text import as_json
from sbc_plugin.evaluation.verdict import verdict

_Models: TypeAlias = tuple[nn.Module, nn.Module]
_Batches: TypeAlias = tuple[Iterable[Any], Iterable[Any] | None]
_Done: TypeAlias = tuple[_Models, _Batches, Report]

OUTPUTS, PAGES = (".nir", ".safetensors", ".onnx"), (".html", ".json")
LOOK_STEPS, LOOK_RATE = 10, 0.1  # of random spikes, to look at a .nir file without data


def demo(options: argparse.Namespace) -> None:
    """Compress the shipped network."""
    from sbc_plugin.demo.run import run

    torch.set_num_threads(1)  # its layers are small: more threads would mostly wait for each other
    run(options.seed, options.json)


def inspect(options: argparse.Namespace) -> None:
    """Say what would be compressed.

    Raises:
        SettingsError: no data for a model that does not say what its input looks like.
    """
    model = model_of(options, options.source)
    if options.data:
        inspection = inspect_model(model, data_of(options, options.data), batch_first=options.batch_first)
    elif isinstance(shape := getattr(model, "input_shape", None), tuple):
        spikes = torch.rand(LOOK_STEPS, 2, *shape, generator=torch.Generator().manual_seed(0), device="cpu") < LOOK_RATE
        inspection = inspect_model(model, [spikes.float()], whole=False)
    else:
        raise SettingsError(f"{options.source} does not say what its input looks like; give some with --data")
    print(as_json(inspection.to_dict(), indent=1) if options.json else inspection)


def compress(options: argparse.Namespace) -> None:
    """Compress a model, measure what that did to it, and write both; under ``torchrun``, as one of its ranks.

    Raises:
        CompressionError: as :func:`sbc_plugin.compress`, and for the files.
    """
    with under_torchrun():
        with ranks.joined():
            models, batches, report = _compress(options)
            first = ranks.rank() == 0
        if first:  # the others need not wait until it has measured
            with ranks.alone():
                _tell(options, models, batches, report)


def _compress(options: argparse.Namespace) -> _Done:
    """Compress on all ranks, and write on the first.

    Returns:
        Dense and compressed model, batches of calibration and held out, and the report.

    Raises:
        SettingsError: settings that contradict each other, or that the file to be written cannot hold.
        CheckpointError: a file that cannot be read or written.
    """
    recipe = recipe_of(options)
    output, report_file = target_of(options.output, OUTPUTS), None
    if options.report is not None:
        report_file = target_of(options.report, PAGES)
        check_target(recipe_file(report_file))
    onnx = output.suffix.lower() == ".onnx"
    if onnx and not recipe.grids:
        raise SettingsError(f"{output} holds integers; give --bits, or write .nir or .safetensors")
    dense = model_of(options, options.source)
    data = data_of(options, options.data)
    held_out = None if options.test is None else data_of(options, options.test)
    rehearse(output, dense, data, recipe.grids[0] if recipe.grids else None)
    if report_file is not None and report_file.suffix.lower() == ".html":
        import_plots()
    small, report = compress_model(
        moved(dense, options.device),
        data,
        **recipe.arguments() | {"backend": "brevitas" if onnx else None},
        checkpoint=options.resume,
    )
    dense, small = moved(dense, "cpu"), moved(small, "cpu")
    first = first_of(data)
    if ranks.rank() == 0:
        write_model(output, small, report, first)
    return (dense, small), (data, held_out), report


def _tell(options: argparse.Namespace, models: _Models, batches: _Batches, report: Report) -> None:
    """Measure what has come of it, and print that.

    Args:
        options: of the command line, with files that can be written.
        models: dense and compressed.
        batches: of calibration, and held out.
        report: of ``compress``.
    """
    output, report_file = Path(options.output), None if options.report is None else Path(options.report)
    (dense, small), (data, held_out) = models, batches
    evaluation = None
    with told_as_written(output):
        try:
            if held_out is not None or report_file is not None:
                measured = data if held_out is None else held_out
                assert report.recipe is not None  # compress made it
                axes = report.recipe.batch_first
                evaluation = evaluate(dense, small, measured, held_out=held_out is not None, batch_first=axes)
        finally:
            if report_file is not None:
                write_text(report_file, _report_text(report_file, report, evaluation, options.source))
                assert report.recipe is not None  # compress made it
                write_text(recipe_file(report_file), report.recipe.to_yaml())
    if options.json:
        print(as_json(_result(report, evaluation, options.source)))
        return
    if isinstance(data, Batches):
        print(f"{options.data}: {data}\n")
    print(report)
    if evaluation is not None:
        print(f"\n{evaluation}")
    print(f"\n{verdict(report, evaluation)}")
    beside = f", {report_file}, {recipe_file(report_file)}" if report_file else ""
    print(f"\nwritten: {output} ({output.stat().st_size / 1000:,.1f} kB){beside}")
    if output.suffix.lower() == ".safetensors":
        print(f"it holds weights, not the model's code: read it with --model {options.source}")


def compare(options: argparse.Namespace) -> None:
    """Run two models on the same data."""
    dense, compressed = model_of(options, options.dense), model_of(options, options.compressed)
    data = data_of(options, options.data)
    comparison = compare_models(dense, compressed, data, batch_first=options.batch_first, runtime=options.runtime)
    print(comparison.to_json(indent=1) if options.json else comparison)


def report(options: argparse.Namespace) -> None:
    """Make the page of a report that was written as JSON.

    Raises:
        CheckpointError: no such file, or no report.
    """
    target = target_of(options.output, PAGES[:1])
    try:
        content = json.loads(Path(options.result).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no file {options.result}; write one with sbc compress --report report.json") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{options.result} is no JSON ({error})") from error
    if not isinstance(content, dict) or "report" not in content:
        raise CheckpointError(f"{options.result} holds no report; write one with sbc compress --report report.json")
    try:
        evaluation = None if content.get("evaluation") is None else Evaluation.from_dict(content["evaluation"])
        made = Report.from_dict(content["report"])
        text = _report_text(target, made, evaluation, str(content.get("model", "")))
    except CheckpointError as error:
        raise CheckpointError(f"{options.result}: {error}") from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{options.result} holds numbers that contradict each other ({error!r})") from error
    write_text(target, text)
    print(f"written: {target}")


def _result(report: Report, evaluation: Evaluation | None, source: str) -> dict[str, Any]:
    measured = None if evaluation is None else evaluation.to_dict()
    told = verdict(report, evaluation).to_dict()
    return {"model": source, "report": report.to_dict(), "evaluation": measured, "verdict": told}


def _report_text(target: Path, report: Report, evaluation: Evaluation | None, source: str) -> str:
    if target.suffix.lower() == ".json":
        return as_json(_result(report, evaluation, source), indent=1)
    from sbc_plugin.evaluation.page import page

    return page(report, evaluation, f"{Path(source).name}: compression report")


def recipe_file(report_file: Path) -> Path:
    """Where the recipe that reproduces a compression is written: beside its report."""
    return report_file.with_suffix(".recipe.yaml")


def write_text(target: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with replacing(target) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def told_as_written(output: Path) -> Iterator[None]:
    """Say in any error of the block that the model is written already.

    Raises:
        CompressionError: the one raised inside, or one that says what another was.
    """
    written = f"; {output} is written"
    try:
        yield
    except CompressionError as error:
        error.args = (f"{error}{written}",)
        raise
    except Exception as error:
        raise CompressionError(f"unexpected {type(error).__name__}: {error}{written}; --debug shows where") from error


def target_of(path: str, suffixes: tuple[str, ...]) -> Path:
    """A file that can be written, of a kind that is known.

    Raises:
        SettingsError: another kind.
        CheckpointError: no folder that one may write to.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise SettingsError(f"{path} is no file that can be written here; its name ends in {' or '.join(suffixes)}")
    return check_target(path)


def model_of(options: argparse.Namespace, source: str) -> nn.Module:
    """The model of a source, as the options have it read."""
    return load_model(source, factory=options.model, dt=options.dt, reset=options.reset, max_bytes=options.max_bytes)


def moved(model: nn.Module, device: str | None) -> nn.Module:
    """The model, on another device; None leaves it where it is.

    Raises:
        SettingsError: there is no such device.
    """
    try:
        return model if device is None else model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"--device {device}: {reason}; use e.g. cpu, cuda or cuda:1, as this machine has"
        ) from error


def data_of(options: argparse.Namespace, source: str) -> Iterable[Any]:
    """Batches that can be run through more than once.

    Raises:
        SettingsError: a number of sequences below 1, or a name that cannot be imported.
        CalibrationError: a file that is missing, or of a layout that is not known.
    """
    if options.batch < 1:
        raise SettingsError(f"--batch {options.batch} is no number of sequences; give at least 1")
    if options.limit is not None and options.limit < 1:
        raise SettingsError(f"--limit {options.limit} is no number of sequences; give at least 1")
    axis = 0 if options.batch_first else 1
    data = load_data(source, batch=options.batch, limit=options.limit, axis=axis, max_bytes=options.max_bytes)
    return list(data) if iter(data) is data else data
