"""The budget of a command line: a size, a factor, operations or energy, and what a chip allows."""

import argparse
from typing import Any

from sbc_plugin.errors import SettingsError
from sbc_plugin.settings import Budget


def budget_of(options: argparse.Namespace, known: Budget | None) -> Budget | None:
    """The budget that was asked for, None if none was; a total that is named takes the place of the chip's.

    Args:
        options: of the command line.
        known: of a recipe file, whose limits hold unless a chip is named.

    Raises:
        SettingsError: two totals, a file that is no budget, or a value out of range.
    """
    total: dict[str, Any] = {"operations": options.budget_operations, "energy": options.budget_energy}
    if options.budget is not None:
        total["factor" if options.budget.strip().endswith("x") else "size"] = _number_or_text(options.budget)
    total = {name: value for name, value in total.items() if value is not None}
    if len(total) > 1:
        raise SettingsError("--budget, --budget-operations and --budget-energy exclude each other; give one of them")
    if options.chip is not None:
        return Budget.from_file(options.chip, **total)
    if not total:
        return known
    return Budget(**total) if known is None else known.instead(**total)


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
