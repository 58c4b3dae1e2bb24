"""A Brevitas model as TorchScript of integer weights that are dequantised, which torch alone runs."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from brevitas.export import export_torch_qcdq
from torch import Tensor, nn

from sbc_plugin.brevitas.export import example_of, first_steps
from sbc_plugin.brevitas.freezing import check_quantised
from sbc_plugin.brevitas.layers import copy_model
from sbc_plugin.brevitas.onnx_trace import CLOSE, Sequence, first_line
from sbc_plugin.calibration.driver import Driver
from sbc_plugin.calibration.precision import autocast_off
from sbc_plugin.checkpoint.atomic import replacing
from sbc_plugin.errors import SettingsError, UnsupportedModelError
from sbc_plugin.layers import library_of


@autocast_off()
def export_torchscript(model: nn.Module, path: str | Path, example_input: Any, *, steps: int | None = None) -> Path:
    """Write a spiking Brevitas model by ``brevitas.export.export_torch_qcdq``; ``torch.jit.load(path)`` runs it.

    Brevitas' own call fails on spiking models, because TorchScript has no word for surrogate gradients; the file has
    steps in their place, and so no gradients. It takes whole sequences with as many steps as the example. The model is
    left as it is, and the file appears whole or not.

    Args:
        model: as of :func:`~sbc_plugin.brevitas.export.export_onnx`.
        path: of the file; one that is there is replaced.
        example_input: as of ``export_onnx``.
        steps: that the file takes, cut from the example; None: all of the example.

    Returns:
        The path.

    Raises:
        SettingsError: ``steps`` out of range.
        UnsupportedModelError: no Brevitas layer, no neuron that is known, an operation that TorchScript has no word
            for, or a file that answers otherwise than the model.
        CalibrationError: the example is not (T, B, ...), or holds fewer than ``steps`` steps.
        CheckpointError: the file cannot be written.
    """
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise SettingsError(f"steps={steps!r} is no number of time steps; use steps=20, or None for all of the example")
    check_quantised(model)
    with torch.inference_mode(False), torch.no_grad():
        target = copy_model(model).eval()
        library = library_of(target)
        library.drop_surrogates(target)
        x = example_of(target, example_input)
        driver = library.default_forward(target, x)
        assert isinstance(driver, Driver)  # of every library that has flat steps
        x = first_steps(x, driver, steps)
        whole = Sequence(target, driver).eval()
        expected = whole(x)
        content = BytesIO()
        try:
            with warnings.catch_warnings():
                # the number of steps is fixed on purpose, and torch deprecates what Brevitas calls
                warnings.simplefilter("ignore")
                traced = export_torch_qcdq(whole, args=x)
            torch.jit.save(traced, content)
            content.seek(0)
            found: Tensor = torch.jit.load(content)(x)
        except Exception as error:  # Brevitas' handlers and the tracer have no class in common
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be exported to TorchScript: {first_line(error)}; use export_onnx, or "
                "torch.export on freeze(model)"
            ) from error
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE):
            raise UnsupportedModelError("the traced file answers otherwise than the model; use export_onnx")
        with replacing(path) as beside:
            beside.write_bytes(content.getvalue())
    return Path(path)
