"""Norse's classes and models in docs/hosts.md: ``python -m integration_tests.norse.tables`` measures both tables.

Every word in them comes from a run, see :mod:`.class_table` and :mod:`.model_table`. Some minutes on one core.
"""

from pathlib import Path

import torch

from integration_tests.norse import class_table, model_table

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"
START, END = "<!-- {} of Norse, by python -m integration_tests.norse.tables: -->", "<!-- end of {} -->"
TABLES = {"classes": class_table.table, "models": model_table.table}


def shown(kind: str) -> str:
    """The table of a kind that stands in the page."""
    _, _, rest = PAGE.read_text().partition(START.format(kind))
    return rest.partition(END.format(kind))[0].strip()


def main() -> None:
    """Measure both, and put them into the page."""
    torch.set_num_threads(1)
    for kind, measure in TABLES.items():
        before, _, rest = PAGE.read_text().partition(START.format(kind))
        _, _, after = rest.partition(END.format(kind))
        PAGE.write_text(f"{before}{START.format(kind)}\n\n{measure()}\n\n{END.format(kind)}{after}")


if __name__ == "__main__":
    main()
