"""Modules with a weight that has a matrix form: torch's own, and Norse's convolution at each step of a sequence."""

from dataclasses import dataclass

from norse.torch import LConv2d
from torch import Tensor, nn

from sbc_plugin.core.matrix_form import WEIGHTED, MatrixForm, Pooling, matrix_form

ALIKE = 0.5  # relative error up to which a subclass counts as its base class: quantised weights round, and no more


@dataclass(frozen=True)
class StepwiseForm(MatrixForm):
    """A two-dimensional convolution at each step of (T, B, C, H, W); of one step alone, (B, C, H, W), as well."""

    def channels_of(self, x: Tensor) -> int:
        """Channels of an input of this layer; -1 for one of another rank."""
        return x.shape[2] if x.dim() == 5 else -1

    def samples(self, x: Tensor, pooling: Pooling | None = None) -> Tensor:
        """(groups, samples, columns), see :class:`~sbc_plugin.core.matrix_form.MatrixForm`."""
        return super().samples(x.flatten(0, 1) if x.dim() == 5 else x, pooling)


def form_of(module: nn.Module) -> MatrixForm:
    """The matrix form of a module of ``WEIGHTED``.

    >>> form_of(LConv2d(4, 6, 3)).columns
    36
    """
    if not isinstance(module, LConv2d):
        return matrix_form(module)
    outputs, inputs, height, width, _ = module.weight.shape
    flat = nn.Conv2d(inputs * module.groups, outputs, (height, width), groups=module.groups, bias=False, device="meta")
    flat.stride, flat.padding, flat.dilation = module.stride[:-1], module.padding[:-1], module.dilation[:-1]
    form = matrix_form(flat)
    return StepwiseForm(form.groups, form.rows, form.columns, form.positions, flat)


def is_of_base_class(module: nn.Module) -> bool:
    """Whether a module computes what torch's own class computes, or Norse's convolution: it has their forward."""
    return type(module).forward in {base.forward for base in (*_classes(), LConv2d)}


def computes_its_product(module: nn.Module, x: Tensor, output: object) -> bool:
    """Whether a call of a subclass gave, but for rounding, what the forward of its base class gives."""
    base = next(cls for cls in type(module).__mro__ if cls in _classes())
    try:
        expected = base.forward(module, x)
    except Exception:
        return False
    if not isinstance(output, Tensor) or expected.shape != output.shape:
        return False
    return bool((output - expected).norm() <= ALIKE * expected.norm())


def _classes() -> tuple[type[nn.Module], ...]:
    return tuple(WEIGHTED.__args__)
