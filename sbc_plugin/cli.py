"""The command ``sbc``: one subcommand a function, which imports what it needs when it is called."""

import argparse
import sys
import warnings
from collections.abc import Sequence

import torch

from sbc_plugin import __version__
from sbc_plugin.errors import CompressionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sbc`` with ``arguments`` (default: the command line's); the exit status."""
    parser = argparse.ArgumentParser(prog="sbc", description="Compress trained spiking networks in one shot.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="compress a small network on real data and show what it costs")
    demo.add_argument("--seed", type=int, default=0, help="of the shipped networks, 0 to 4 (default: %(default)s)")
    demo.add_argument("--json", action="store_true", help="one JSON object a row instead of a table")
    demo.set_defaults(command=_demo)

    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)  # decaying membranes become denormal, and CPUs crawl
    # norse compiles functions with torch.jit.script while it is imported: nothing the caller could do about it
    warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
    try:
        options.command(options)
    except CompressionError as error:
        print(f"sbc: {error}", file=sys.stderr)
        return 1
    return 0


def _demo(options: argparse.Namespace) -> None:
    try:
        from sbc_plugin.demo.run import run
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise SystemExit(f"sbc: the demo needs {package}; pip install 'sbc-plugin[demo]'") from error
    torch.set_num_threads(1)  # its layers are small: more threads would mostly wait for each other
    run(options.seed, options.json)
