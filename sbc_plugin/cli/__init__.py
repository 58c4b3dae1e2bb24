"""The command ``sbc``; what it needs is imported when it is called."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sbc`` with ``arguments`` (default: those of the command line) and return its exit status."""
    from sbc_plugin.cli.parser import main as run

    return run(arguments)
