"""SBC in Brevitas: quantizers whose grid stays, layers replaced in spiking models, and a ``gptq_mode`` that knows time.

The quantizers of 2, 3, 4 and 8 bits are attributes of this package as well, named in Brevitas' manner, such as
``SBCInt4WeightPerChannelFloat``. Importing this patches nothing.
"""

from sbc_plugin.errors import extra

with extra("brevitas"):
    from brevitas.inject import ExtendedInjector

    from sbc_plugin.brevitas import quantizers
    from sbc_plugin.brevitas.backend import check_backend, into_backend
    from sbc_plugin.brevitas.export import Exported, export_onnx
    from sbc_plugin.brevitas.freezing import freeze
    from sbc_plugin.brevitas.held_scales import match_state
    from sbc_plugin.brevitas.layers import quantize_layers
    from sbc_plugin.brevitas.mode import sbc_mode
    from sbc_plugin.brevitas.quantizer_integers import integers
    from sbc_plugin.brevitas.quantizers import weight_quantizer
    from sbc_plugin.brevitas.runtime import measure_runtime
    from sbc_plugin.brevitas.torchscript import export_torchscript
    from sbc_plugin.core.quantization.integers import Integers


__all__ = [
    "Exported",
    "Integers",
    "check_backend",
    "export_onnx",
    "export_torchscript",
    "freeze",
    "integers",
    "into_backend",
    "match_state",
    "measure_runtime",
    "quantize_layers",
    "sbc_mode",
    "weight_quantizer",
    *quantizers.NAMED,
]


def __getattr__(name: str) -> type[ExtendedInjector]:
    """One of the named quantizers.

    Raises:
        AttributeError: no quantizer of this name.
    """
    if name in quantizers.NAMED:
        return weight_quantizer(*quantizers.NAMED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
