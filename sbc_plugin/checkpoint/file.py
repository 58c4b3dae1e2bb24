"""``save`` and ``load``: a compressed model in one small file, and back, equal in every bit; never pickle.

The file is a safetensors file: weights packed, everything else as it is, and a JSON header with what the tensors do
not say: how weights are packed, neuron parameters, the report. Source: docs/checkpoint.md.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, overload

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sbc_plugin.checkpoint.atomic import replacing
from sbc_plugin.checkpoint.module_state import DTYPES, NAMES, describe, setters
from sbc_plugin.checkpoint.restore import fill
from sbc_plugin.core.packing import TRIT
from sbc_plugin.core.storage import PackedWeight, pack, unpack
from sbc_plugin.errors import CheckpointError, in_layer
from sbc_plugin.evaluation.report import Report
from sbc_plugin.version import __version__

FORMAT = 2
KEY = "sbc_plugin"  # in the metadata of safetensors
HEADER, PACKED = "::header", "::packed"  # tensors of bytes; no module or parameter is called so
UNSIGNED = "0" * 64  # stands for the checksum while it is computed


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
    groups, attributes = describe(model)
    state, same = _state(model)
    if clash := sorted((state.keys() & attributes.keys()) | ({HEADER, PACKED} & (state.keys() | attributes.keys()))):
        raise CheckpointError(f"two tensors are called {clash[0]!r}; rename the module that holds one of them")
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in (state | attributes).items()}
    forms, blocks = {}, [torch.zeros(0, dtype=torch.uint8, device="cpu")]
    for name in state:
        packed = pack(tensors[name])
        if packed is not None:
            del tensors[name]
            forms[name] = _as_json(packed[0])
            blocks.append(packed[1])
    header = {"packed": forms, "same": same, "modules": groups, **entries}
    tensors[HEADER] = torch.frombuffer(bytearray(zlib.compress(_json(header).encode(), 9)), dtype=torch.uint8)
    if forms:
        tensors[PACKED] = torch.cat(blocks)
    signed = {"format": FORMAT, "sha256": UNSIGNED, "version": __version__}
    data = safetensors.torch.save(tensors, {KEY: _json(signed)})
    data = data.replace(UNSIGNED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
    with replacing(Path(path)) as file:
        file.write_bytes(data)


@overload
def load(path: str | PathLike[str]) -> Checkpoint: ...


@overload
def load(path: str | PathLike[str], model: nn.Module) -> tuple[nn.Module, Report | None]: ...


def load(path: str | PathLike[str], model: nn.Module | None = None) -> Checkpoint | tuple[nn.Module, Report | None]:
    """Read a file of :func:`save`, whole and unchanged, and make ``model`` the one that was saved, in every bit.

    Args:
        path: of the file.
        model: a fresh instance, built by the code that built the saved one; its values do not matter. Where channels
            were cut, it may have its uncut shapes. It is changed in place, or not at all if anything fails; device,
            training mode and ``requires_grad`` stay its own.

    Returns:
        The model and the report; without a model, all that the file holds.

    Raises:
        CheckpointError: no such file, one that is damaged, foreign or of a newer format, or a model that does not fit.
    """
    header, stored = _read(Path(path))
    try:
        attributes = {name: stored.pop(name) for name in _named(header["modules"])}
        state = stored | _unpacked(
            header["packed"], stored.pop(PACKED, torch.zeros(0, dtype=torch.uint8, device="cpu"))
        )
        state |= {name: state[source] for name, source in header["same"].items()}
        report = None if header["report"] is None else Report.from_dict(header["report"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has a header that contradicts itself ({error!r}); it is damaged") from error
    if model is None:
        return Checkpoint(header, report, state, attributes)
    fill(model, state, setters(model, header["modules"], attributes))
    return model, report


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


def _as_json(form: PackedWeight) -> dict[str, Any]:
    """A form as JSON; what has its usual value is left out."""
    entry: dict[str, Any] = {"shape": list(form.shape), "bytes": form.size}
    if form.dtype != torch.float32:
        entry["dtype"] = NAMES[form.dtype]
    if form.places != "all":
        entry |= {"places": form.width or "mask", "kept": form.kept}
    if form.bits:
        entry["bits"] = form.bits
        if form.zero != _middle(form.bits):
            entry["zero"] = form.zero
        if form.scales != form.shape[0]:
            entry["scales"] = form.scales
        if form.scale_dtype != torch.float32:
            entry["scale"] = NAMES[form.scale_dtype]
    return entry


def _unpacked(forms: Mapping[str, Any], data: Tensor) -> dict[str, Tensor]:
    """The weights whose bytes lie side by side in ``data``, in the order of the table."""
    blocks = data.split([entry["bytes"] for entry in forms.values()])
    weights = {}
    for (name, entry), block in zip(forms.items(), blocks, strict=True):
        with in_layer(name):
            weights[name] = unpack(_form(entry), block)
    return weights


def _form(entry: Mapping[str, Any]) -> PackedWeight:
    """The form behind an entry of :func:`_as_json`."""
    shape, bits, width = tuple(entry["shape"]), entry.get("bits", 0), entry.get("places", 0)
    places = "all" if "places" not in entry else "mask" if width == "mask" else "gaps"
    return PackedWeight(
        shape=shape, dtype=DTYPES[entry.get("dtype", "F32")], places=places, width=width if places == "gaps" else 0,
        kept=entry["kept"] if "kept" in entry else torch.Size(shape).numel(), bits=bits,
        zero=entry.get("zero", _middle(bits) if bits else 0), scales=entry.get("scales", shape[0]) if bits else 0,
        scale_dtype=DTYPES[entry.get("scale", "F32")], size=entry["bytes"],
    )  # fmt: skip


def _middle(bits: float) -> int:
    """The usual code of 0.0."""
    return 1 if bits == TRIT else 2 ** (int(bits) - 1) - 1


def _named(groups: list[Any]) -> set[str]:
    """The names of the tensors that module records refer to."""

    def inside(entry: Any) -> list[str]:
        if not isinstance(entry, dict):
            return []
        return [entry["tensor"]] if "tensor" in entry else [name for part in entry.values() for name in inside(part)]

    return {f"{module}:{name}" for modules, record in groups for name in inside(record) for module in modules}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of ours, after all checks that need no model.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign, or of a newer format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; give the path of a file of save()") from error
    length = int.from_bytes(data[:8], "little")
    try:
        table = json.loads(data[8 : 8 + length].decode())
        metadata = table.pop("__metadata__", {})
        end = 8 + length + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        short = f" (its first bytes promise a header of {length:,} bytes)" if length > len(data) - 8 else ""
        raise CheckpointError(
            f"{path}, {len(data):,} bytes, is no safetensors file, or it is truncated or damaged{short}; get it again"
        ) from error
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file that save() did not write; safetensors.torch.load_file reads it"
        )
    if len(data) != end:
        kind = (
            f"truncated: {len(data):,} of {end:,} bytes" if len(data) < end else f"{len(data) - end:,} bytes too long"
        )
        raise CheckpointError(f"{path} is {kind}; get it again")
    try:
        signed = json.loads(metadata[KEY])
        version, checksum = int(signed["format"]), str(signed["sha256"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); get it again") from error
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads up to {FORMAT}; update sbc-plugin")
    if hashlib.sha256(data.replace(checksum.encode(), UNSIGNED.encode(), 1)).hexdigest() != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum is not that of its bytes; get it again")
    try:
        tensors = safetensors.torch.load(data)
        return signed | json.loads(zlib.decompress(tensors.pop(HEADER).numpy().tobytes())), tensors
    except (SafetensorError, KeyError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged: {error}; get it again") from error
