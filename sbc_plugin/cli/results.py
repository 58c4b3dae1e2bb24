"""The compressed model as a file of the kind that was asked for, and what can be refused before the work begins."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from sbc_plugin.calibration.batches import input_of
from sbc_plugin.calibration.shares import peek
from sbc_plugin.calibration.wrappers import unwrapped
from sbc_plugin.checkpoint.file import as_bytes, save
from sbc_plugin.errors import CheckpointError, extra
from sbc_plugin.evaluation.report import Report
from sbc_plugin.layers import library_of
from sbc_plugin.settings import Quantize


def rehearse(output: Path, model: nn.Module, data: Iterable[Any], quantize: Quantize | None) -> None:
    """Refuse a model that the file cannot hold, before it is compressed; the model is left as it is.

    A .nir and a .safetensors file are made in memory, and forgotten. An .onnx file is written to a temporary folder, of
    the model with all layers rounded, for only its trace shows what ONNX has no word for.

    Args:
        output: of the file to be written later.
        model: not compressed.
        data: batches, of which the first is run.
        quantize: the grid.

    Raises:
        CompressionError: as :func:`write_model`.
    """
    suffix = output.suffix.lower()
    model = unwrapped(model)
    first, _ = peek(data)
    if suffix == ".safetensors":
        as_bytes(model, {"report": None})
    elif suffix == ".nir":
        from sbc_plugin.nir import graph_of

        graph_of(model, input_shape=tuple(input_of(first).shape[2:]), example=first)
    elif quantize is not None:
        from sbc_plugin.brevitas import quantize_layers, weight_quantizer

        rounded, _ = quantize_layers(model, weight_quantizer(f"int{quantize.bits}", quantize.granularity))
        # That a disk is full is told by the file that stays, for it may lie on another one.
        with suppress(CheckpointError, OSError), TemporaryDirectory() as folder:
            write_model(Path(folder) / output.name, rounded, Report([]), first)


def write_model(output: Path, model: nn.Module, report: Report, batch: Any) -> None:
    """Write a compressed model.

    Args:
        output: of the file: .safetensors, .nir or .onnx.
        model: compressed.
        report: of ``compress``.
        batch: of its data; a .nir file takes the shape of the input from it, an .onnx file an example.

    Raises:
        CompressionError: the file cannot hold the model, or cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix == ".safetensors":
        save(output, model, report)
    elif suffix == ".nir":
        from sbc_plugin.nir import write

        write(output, model, input_shape=tuple(input_of(batch).shape[2:]), example=batch)
    else:
        from sbc_plugin.brevitas import export_onnx

        one_step = library_of(model).is_step_model(model, batch)
        export_onnx(model, output, batch, steps=None if one_step else len(input_of(batch)))


def import_plots() -> None:
    """Refuse to make pages where the package that draws is missing.

    Raises:
        MissingPackageError: it is not installed.
    """
    with extra("plots"):
        import sbc_plugin.evaluation.plots  # noqa: F401
