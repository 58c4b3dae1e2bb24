"""Plain attributes of modules that hold tensors: what forward leaves there is no state of the model."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OWN_ATTRIBUTES = frozenset(vars(nn.Module()))  # torch's own: parameters, buffers, hooks, mode


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back the tensors that calls leave in plain attributes of modules, and in lists and dicts among those."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [{name: (value, _contents(value)) for name, value in _attributes(module).items()} for module in modules]
    try:
        yield
    finally:
        for module, known in zip(modules, before, strict=True):
            now = _attributes(module)
            for name in now.keys() - known.keys():
                if _holds_tensor(now[name]):
                    del vars(module)[name]
            for name, (old, contents) in known.items():
                if now.get(name) is not old and (_holds_tensor(now.get(name)) or _holds_tensor(old)):
                    vars(module)[name] = old
                if contents is not None and (_holds_tensor(old) or _holds_tensor(contents)):
                    old.clear()
                    (old.extend if isinstance(old, list) else old.update)(contents)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in OWN_ATTRIBUTES}


def _contents(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict) else None


def _holds_tensor(value: Any) -> bool:
    return any(True for _ in _tensors(value))


def constructed_with(module: nn.Module) -> set[str]:
    """The names of the parameters of the module's constructor, and of those of the classes that it extends."""
    kinds = [cls for cls in type(module).__mro__ if "__init__" in vars(cls) and cls not in (nn.Module, object)]
    return {name for cls in kinds for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]


def graph_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Copies, by id, of the tensors in plain attributes that belong to an autograd graph, as ``copy.deepcopy``'s memo.

    >>> layer = nn.Linear(2, 2)
    >>> layer.last = 2 * layer.weight
    >>> [tensor.requires_grad for tensor in graph_tensors(layer).values()]
    [False]
    """
    tensors = (t for module in model.modules() for value in _attributes(module).values() for t in _tensors(value))
    return {id(tensor): tensor.detach().clone() for tensor in tensors if tensor.grad_fn is not None}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
