"""The progress bar of every loop that may take long."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from sbc_plugin.calibration import ranks

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], doing: str, unit: str, progress: bool | None) -> Iterable[Item]:
    """The items, with a bar beside them that leaves nothing behind; of several ranks the first shows it.

    Args:
        items: to go through.
        doing: what is done with them, e.g. "tuning".
        unit: what one of them is called.
        progress: whether to show it; None = on a terminal.
    """
    hidden = True if ranks.rank() else None if progress is None else not progress
    return tqdm(items, desc=doing, unit=unit, leave=False, disable=hidden)
