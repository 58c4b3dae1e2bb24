"""``save`` and ``load``: a compressed model in one small file, and back, equal in every bit; never pickle.

The file is a safetensors file: weights packed, everything else as it is, and a JSON header with what the tensors do
not say: how weights are packed, neuron parameters, the report. Source: docs/checkpoint.md.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from sbc_plugin.checkpoint.atomic import replacing
from sbc_plugin.checkpoint.forms import form_as_json, form_of
from sbc_plugin.checkpoint.module_state import describe, setters
from sbc_plugin.checkpoint.reading import FORMAT, HEADER, KEY, MAX_BYTES, PACKED, UNSIGNED, read_file
from sbc_plugin.checkpoint.restore import check_fits, fill
from sbc_plugin.core.storage import PackedWeight, pack, unpack
from sbc_plugin.errors import CheckpointError, in_layer
from sbc_plugin.evaluation.report import Report
from sbc_plugin.version import __version__


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, without a model to put it into.

    Attributes:
        header: format, version of sbc_plugin, checksum, and the tables of docs/checkpoint.md.
        report: of ``compress``; None if the file was saved without one.
        tensors: the model's ``state_dict``, unpacked.
        attributes: tensors that are not in it, such as time constants: "name of module:attribute" -> tensor.
    """

    header: dict[str, Any]
    report: Report | None
    tensors: dict[str, Tensor]
    attributes: dict[str, Tensor]


def save(path: str | PathLike[str], model: nn.Module, report: Report | None = None) -> None:
    """Write a model to a file, as small as its zeros and its grids allow.

    Grids are found from the weights themselves, so models that Brevitas quantised, or whose channels were cut, are
    packed as well. The file appears whole or not at all, and one that was there stays if anything fails.

    Args:
        path: of the file.
        model: any module; its ``state_dict``, and what its modules hold beside it: NamedTuples of neuron parameters,
            tensors, floats.
        report: of ``compress``, kept in the file.

    Raises:
        CheckpointError: the file cannot be written, or the model holds something that has no place in it.
    """
    write(path, model, {"report": None if report is None else report.to_dict()})


def write(path: str | PathLike[str], model: nn.Module, entries: Mapping[str, Any]) -> None:
    """As :func:`save`, with these entries in the header ("report" among them), each as JSON takes it.

    Raises:
        CheckpointError: the file cannot be written, or the model holds something that has no place in it.
    """
    data = as_bytes(model, entries)
    with replacing(Path(path)) as file:
        file.write_bytes(data)


def as_bytes(model: nn.Module, entries: Mapping[str, Any]) -> bytes:
    """What :func:`write` writes.

    Raises:
        CheckpointError: the model holds something that has no place in a file.
    """
    groups, attributes = describe(model)
    state, same = _state(model)
    if clash := sorted((state.keys() & attributes.keys()) | ({HEADER, PACKED} & (state.keys() | attributes.keys()))):
        raise CheckpointError(f"two tensors are called {clash[0]!r}; rename the module that holds one of them")
    if odd := [name for name in (*state, *attributes) if not is_text(name)]:
        raise CheckpointError(f"{odd[0]!r} is no text that a file can hold; rename the module or tensor")
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in (state | attributes).items()}
    forms, blocks = {}, [torch.zeros(0, dtype=torch.uint8, device="cpu")]
    for name in state:
        packed = pack(tensors[name])
        if packed is not None:
            del tensors[name]
            forms[name] = form_as_json(packed[0])
            blocks.append(packed[1])
    header = {"packed": forms, "same": same, "modules": groups, **entries}
    tensors[HEADER] = torch.frombuffer(bytearray(zlib.compress(_json(header).encode(), 9)), dtype=torch.uint8)
    if forms:
        tensors[PACKED] = torch.cat(blocks)
    signed = {"format": FORMAT, "sha256": UNSIGNED, "version": __version__}
    data: bytes = safetensors.torch.save(tensors, {KEY: _json(signed)})
    return data.replace(UNSIGNED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


@overload
def load(path: str | PathLike[str], *, max_bytes: int = MAX_BYTES) -> Checkpoint: ...


@overload
def load(
    path: str | PathLike[str], model: nn.Module, *, max_bytes: int = MAX_BYTES
) -> tuple[nn.Module, Report | None]: ...


def load(
    path: str | PathLike[str], model: nn.Module | None = None, *, max_bytes: int = MAX_BYTES
) -> Checkpoint | tuple[nn.Module, Report | None]:
    """Read a file of :func:`save`, whole and unchanged, and make ``model`` the one that was saved, in every bit.

    Args:
        path: of the file.
        model: a fresh instance, built by the code that built the saved one; its values do not matter. Where channels
            were cut, it may have its uncut shapes. It is changed in place, or not at all if anything fails; device,
            training mode and ``requires_grad`` stay its own.
        max_bytes: that the file, and all its weights unpacked, may take; twice the size of the model, if that is more.

    Returns:
        The model and the report; without a model, all that the file holds.

    Raises:
        CheckpointError: no such file, one that is damaged, foreign, too large or of a newer format, or a model that
            does not fit.
    """
    if model is not None:
        max_bytes = max(max_bytes, 2 * bytes_of(model))
    header, stored = read_file(Path(path), max_bytes)
    try:
        attributes = {name: stored.pop(name) for name in _named(header["modules"])}
        assignments = [] if model is None else setters(model, header["modules"], attributes)
        data, forms = stored.pop(PACKED), _forms(header["packed"], stored)
        shapes = {name: stored[name].shape for name in stored} | {name: form.shape for name, form in forms.items()}
        shapes |= {name: shapes[source] for name, source in header["same"].items()}
        if model is not None:
            check_fits(model, shapes)
        report = _report(header["report"])
        state = stored | _unpacked(forms, data, max_bytes)
        state |= {name: state[source] for name, source in header["same"].items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that contradicts itself ({error!r}); it is damaged") from error
    if model is None:
        return Checkpoint(header, report, state, attributes)
    fill(model, state, assignments)
    return model, report


def is_text(name: str) -> bool:
    r"""Whether a name can be written: half of a surrogate pair cannot.

    >>> is_text("conv1"), is_text("\ud800")
    (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def bytes_of(model: nn.Module) -> int:
    """What the model's tensors take."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of ``state_dict``, and name -> name for those that are one and the same.

    Raises:
        CheckpointError: one is no dense tensor with values.
    """
    state: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{type(tensor).__name__}{'' if not isinstance(tensor, Tensor) else f' on {tensor.device}'}"
            raise CheckpointError(f"{name!r} is a {kind}, which has no place in a file; make it a dense tensor")
        if first.setdefault(id(tensor), name) != name:
            same[name] = first[id(tensor)]
        else:
            state[name] = tensor
    return state, same


def _named(groups: list[Any]) -> set[str]:
    """The names of the tensors that module records refer to."""

    def inside(entry: Any) -> list[str]:
        if not isinstance(entry, dict):
            return []
        return [entry["tensor"]] if "tensor" in entry else [name for part in entry.values() for name in inside(part)]

    return {f"{module}:{name}" for modules, record in groups for name in inside(record) for module in modules}


def _forms(entries: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, PackedWeight]:
    forms = {}
    for name, entry in entries.items():
        with in_layer(name):
            if name in stored:
                raise CheckpointError("the file holds it twice, packed and as it is; the file is damaged")
            forms[name] = form_of(entry)
    return forms


def _unpacked(forms: Mapping[str, PackedWeight], data: Tensor, max_bytes: int) -> dict[str, Tensor]:
    """The weights whose bytes lie side by side in ``data``, in the order of the table.

    Raises:
        CheckpointError: there are other bytes, or the weights would take too much memory.
    """
    unpacked = sum(prod(form.shape) * form.dtype.itemsize for form in forms.values())
    if unpacked > max_bytes:
        raise CheckpointError(
            f"its weights take {unpacked:,} bytes unpacked, more than max_bytes={max_bytes:,}; give a larger limit if "
            "the file is to be trusted"
        )
    if len(data) != (size := sum(form.size for form in forms.values())):
        raise CheckpointError(f"it has {len(data):,} bytes of packed weights, its forms have {size:,}; it is damaged")
    blocks = data.split([form.size for form in forms.values()])
    weights = {}
    for (name, form), block in zip(forms.items(), blocks, strict=True):
        with in_layer(name):
            weights[name] = unpack(form, block)
    return weights


def _report(content: dict[str, Any] | None) -> Report | None:
    if content is None:
        return None
    report = Report.from_dict(content)
    str(report)  # values of other types are found where they are printed
    return report
