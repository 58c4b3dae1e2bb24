"""``register``: SBC where scripts of torch-pruning look, under its own names or in the place of a method of theirs.

torch-pruning has no table of methods: a script chooses by if and elif, makes an importance and hands it to a pruner.
The choice is seen where the two meet. While SBC stands in the place of a method, a pruner that is made of the
importance and the class of this method becomes an :class:`SBCPruner`; all others are what they were.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import wraps
from inspect import signature
from types import TracebackType
from typing import Any

import torch_pruning as tp

from sbc_plugin.errors import CalibrationError, SettingsError
from sbc_plugin.layers import Forward
from sbc_plugin.torch_pruning.graph.dependency_graph import replaced
from sbc_plugin.torch_pruning.importance import SBCImportance
from sbc_plugin.torch_pruning.methods import METHODS, Method, makes_host_pruner
from sbc_plugin.torch_pruning.pruner import SBCPruner

REPLACEABLE = tuple(name for name in METHODS if name != "obdc")  # its scripts call the importance of the pruner

_in_force: list["Registration"] = []


class Registration:
    """What :func:`register` did, until :meth:`undo`, :func:`unregister` or the end of its ``with`` block.

    Attributes:
        in_place_of: the method of torch-pruning that means SBC; None if none does.
        pruners: how many pruners became SBC's.
    """

    def __init__(self, in_place_of: str | None) -> None:
        self.in_place_of, self.pruners = in_place_of, 0
        self._changes = ExitStack()

    def undo(self) -> None:
        """Put back what torch-pruning had; pruners that were made stay what they are."""
        if self in _in_force:
            _in_force.remove(self)
        self._changes.close()

    def __enter__(self) -> "Registration":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def register(
    calibration_data: Iterable[Any] | None = None, forward: Forward | None = None, in_place_of: str | None = None
) -> Registration:
    """Put ``SBCPruner`` into ``tp.pruner`` and ``SBCImportance`` into ``tp.importance``, where scripts look.

    With ``in_place_of="l1"``, a script that makes what torch-pruning's pipelines make for "l1" gets SBC: pruners of
    ``MagnitudeImportance(p=1)`` become :class:`SBCPruner`. The arguments that any pruner takes keep their meaning,
    those of one method alone (``reg``, ``alpha``, ...) have none, so that sparsity learning does not regularise.
    Names that make the same two objects, as "group_norm" and "group_sl" do, cannot be told apart. ``get_pruner`` keeps
    its own names.

    Args:
        calibration_data: with ``in_place_of``: iterable of batches, such as a script's own loader of (x, y).
        forward: with ``in_place_of``: ``forward(model, batch)`` runs one whole batch.
        in_place_of: a method of torch-pruning, as in :func:`get_pruner`.

    Returns:
        What was done, to be undone; it is a context manager too.

    Raises:
        SettingsError: no such method, or SBC stands in the place of one already. So does making a pruner of a class
            that a script derives from the method's own.
        CalibrationError: no calibration data for ``in_place_of``.

    >>> with register([], in_place_of="l1"):
    ...     hasattr(tp.pruner, "SBCPruner")
    True
    """
    active = next((one for one in _in_force if in_place_of is None or one.in_place_of is not None), None)
    if active is not None and in_place_of is None and active.in_place_of is None:
        return active
    if active is not None:
        raise SettingsError(
            f"register() is in force already, in place of {active.in_place_of!r}; call unregister() first"
        )
    if in_place_of is not None and in_place_of not in REPLACEABLE:
        raise SettingsError(f"in_place_of={in_place_of!r}; use one of {', '.join(map(repr, REPLACEABLE))}")
    if in_place_of is not None and calibration_data is None:
        raise CalibrationError(
            "in_place_of needs calibration_data: an iterable of batches, such as the script's loader"
        )
    done = Registration(in_place_of)
    done._changes.enter_context(replaced(tp.pruner, "SBCPruner", SBCPruner))
    done._changes.enter_context(replaced(tp.importance, "SBCImportance", SBCImportance))
    if in_place_of is not None:
        method = METHODS[in_place_of]
        given = {"calibration_data": calibration_data, "forward": forward}
        done._changes.enter_context(replaced(method.pruner, "__init__", _choosing(method, given, done)))
    _in_force.append(done)
    return done


def unregister() -> None:
    """Undo every :func:`register` that is in force; nothing happens if none is."""
    for done in reversed(_in_force.copy()):
        done.undo()


def _choosing(method: Method, given: dict[str, Any], done: Registration) -> Callable[..., None]:
    """The ``__init__`` of a method's pruner that makes an :class:`SBCPruner` where the importance is the method's."""
    original: Callable[..., None] = method.pruner.__init__
    known = signature(tp.pruner.BasePruner.__init__).parameters

    @wraps(original)
    def init(self: Any, *args: Any, **named: Any) -> None:
        try:
            call = dict(signature(original).bind(self, *args, **named).arguments)
        except TypeError:
            return original(self, *args, **named)  # which says what is wrong
        stock = isinstance(self, SBCPruner) or makes_host_pruner() or not _is_of(call["importance"], method)
        if not stock and not type(self).__module__.startswith(f"{tp.__name__}."):
            raise SettingsError(
                f"register(in_place_of={done.in_place_of!r}) cannot replace {type(self).__name__}, a pruner of the "
                "script's own; derive it from sbc_plugin.torch_pruning.SBCPruner"
            )
        if stock or type(self) is not method.pruner:
            return original(self, *args, **named)
        call |= call.pop("kwargs", {})
        arguments = {name: value for name, value in call.items() if name in known and name != "importance"}
        del arguments["self"]
        self.__class__ = SBCPruner
        SBCPruner.__init__(self, **arguments, **given)
        done.pruners += 1

    return init


def _is_of(importance: Any, method: Method) -> bool:
    """Whether an importance is one that torch-pruning makes for the method, whatever name its class has there."""
    stock, cls = method.importance(), type(importance)
    same = all(getattr(cls, name, None) is getattr(type(stock), name) for name in ("__init__", "__call__"))
    return (
        same
        and cls.__module__ == type(stock).__module__
        and getattr(importance, "p", None) == getattr(stock, "p", None)
    )
