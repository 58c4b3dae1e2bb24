"""The command ``sbc``: its options, and how it reports errors."""

import argparse
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from sbc_plugin.checkpoint.atomic import reason_of
from sbc_plugin.cli import commands
from sbc_plugin.cli.options import expert_options, layer_options, setting_options
from sbc_plugin.cli.series_options import SERIES_EXAMPLES, search_options, sweep_options
from sbc_plugin.cli.spike_files import MAX_BYTES
from sbc_plugin.errors import EXTRAS, CompressionError, SettingsError, missing
from sbc_plugin.version import __version__

__all__ = ["EXTRAS", "main"]

LONGEST = 400  # characters of a message that this package did not write
MODEL = "model.nir, model.safetensors (made by sbc), or package.module:factory, a function that returns the model"
DATA = "spikes.npz, spikes.npy (time first: (T, N, ...), see docs/spike-files.md), or package.module:loader"
EXIT = """exit status:
  0  done
  1  a model, a file or a setting does not fit; one line on standard error says which and what to do
  2  the command line itself is wrong
  130  interrupted; nothing half-written is left, and with --resume the same command goes on
"""
EXAMPLES = {
    "sbc": """examples:
  sbc demo                                               small networks on real data, in a minute or two
  sbc inspect model.nir                                  what would be compressed, and what it would take
  sbc compress model.nir --data spikes.npz --sparsity 0.9 -o small.nir --report report.html
  sbc compare model.nir small.nir --data test.npz        spikes, operations, energy and size before and after
""",
    "compress": """examples:
  sbc compress model.nir --data spikes.npz --sparsity 0.9 --bits 4 -o small.nir
  sbc compress my_package.nets:trained --data my_package.data:calibration --pattern 2:4 -o small.safetensors
  sbc compress model.nir --data spikes.npz --bits 4 -o small.onnx --test test.npz --report report.html

Calibration data is a few hundred sequences like those that the network was trained on, without labels. Data for --test
is data that nothing was fitted to: accuracy (where the file holds labels) and spike distances are measured on it.
""",
} | SERIES_EXAMPLES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sbc`` with ``arguments`` (default: the command line's); the exit status."""
    options = _parser().parse_args(arguments)
    with _printing_any_name():
        try:
            _prepare(options)
            options.command(options)
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be printed shows here, and not while Python ends
        except KeyboardInterrupt:
            print("sbc: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of standard output left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, SystemExit) as error:  # whatever a stranger's model, data or module raises
            if options.debug:
                traceback.print_exc()
            print(f"sbc: {_message(error)}", file=sys.stderr)
            return 1
    return 0


def _prepare(options: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)  # decaying membranes become denormal, and CPUs crawl
    threads = getattr(options, "threads", None)
    if threads is not None and threads < 1:
        raise SettingsError(f"--threads {threads} is no number of threads; give at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    # norse compiles functions with torch.jit.script while it is imported: nothing the caller could do about it
    warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
    # Brevitas looks for optional packages and for CUDA's compiler while it is imported
    warnings.filterwarnings("ignore", message="fast_hadamard_transform package not found")
    # numpy before 2 asks for the smallest denormal, which is flushed here
    warnings.filterwarnings("ignore", message="The value of the smallest subnormal", category=UserWarning)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@contextmanager
def _printing_any_name() -> Iterator[None]:
    """Inside the block standard output escapes what its encoding has no letters for, as standard error does."""
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):
        yield
        return
    before = output.errors
    output.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # its reader has left, or a command closed it
            output.reconfigure(errors=before)


def _message(error: BaseException) -> str:
    """One line for any exception; those that this package does not raise on purpose say their kind."""
    text = " ".join(str(error).split())
    if isinstance(error, CompressionError):
        return text
    if isinstance(error, ModuleNotFoundError):
        return missing(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {reason_of(error)}"
    if isinstance(error, MemoryError):
        return "not enough memory; give fewer sequences with --limit or --batch"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"unexpected {type(error).__name__}{': ' if text else ''}{text}; --debug shows where"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sbc",
        description="Compress trained spiking networks without labels, keeping their spike trains: second-order "
        "solvers, and by default up to 200 gradient steps.",
        epilog=EXAMPLES["sbc"] + "\n" + EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    add = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = _command(add, "demo", "compress small networks on real data and show what it costs", commands.demo)
    demo.add_argument("--seed", type=int, help="one of the shipped networks, 0 to 4 (default: means of all)")

    inspect = _command(add, "inspect", "what would be compressed, what not and why, memory and time", commands.inspect)
    inspect.add_argument("source", metavar="SOURCE", help=MODEL)
    inspect.add_argument("--data", help=f"{DATA}; a .nir file can do without")
    _reading(inspect)

    compress = _command(add, "compress", "prune and quantise a trained network", commands.compress)
    compress.add_argument("source", metavar="SOURCE", help=MODEL)
    compress.add_argument("--data", required=True, help=f"for calibration: {DATA}")
    compress.add_argument("-o", "--output", required=True, metavar="OUT", help="OUT.nir, OUT.safetensors or OUT.onnx")
    setting_options(compress)
    layer_options(compress)
    compress.add_argument("--test", metavar="DATA", help="held-out data to measure on, as --data")
    compress.add_argument(
        "--report",
        metavar="FILE",
        help="write what happened to report.html or report.json, and the recipe that reproduces it beside it "
        "(report.recipe.yaml)",
    )
    compress.add_argument(
        "--resume",
        metavar="FOLDER",
        help="keep there what is computed: after an interruption the same command goes on (made if there is none)",
    )
    _reading(compress)
    expert_options(compress)

    for name, about, own in (
        ("search", "the most compressed network within a tolerance", search_options),
        ("sweep", "a table of many sparsities and bits", sweep_options),
    ):
        series = _command(add, name, about, _on_demand(name))
        setting_options(series)
        own(series, MODEL, DATA)
        layer_options(series)
        _reading(series)
        expert_options(series)

    compare = _command(add, "compare", "run two models on the same data: spikes, operations, size", commands.compare)
    compare.add_argument("dense", metavar="A", help=f"before: {MODEL}")
    compare.add_argument("compressed", metavar="B", help="after, as A")
    compare.add_argument("--data", required=True, help=DATA)
    compare.add_argument(
        "--runtime", action="store_true", help="also milliseconds a sequence and file size in onnxruntime"
    )
    _reading(compare)

    report = _command(add, "report", "make an HTML page from a report in JSON", commands.report)
    report.add_argument("result", metavar="RESULT", help="report.json, as sbc compress --report writes it")
    report.add_argument("-o", "--output", required=True, metavar="OUT", help="report.html")
    return parser


def _on_demand(name: str) -> Callable[[argparse.Namespace], None]:
    """A command of ``cli/series.py``, which is imported when it runs."""

    def run(options: argparse.Namespace) -> None:
        from sbc_plugin.cli import series

        getattr(series, name)(options)

    return run


def _command(
    add: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str, run: object
) -> argparse.ArgumentParser:
    parser = add.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=EXAMPLES.get(name, "") + "\n" + EXIT,
        conflict_handler="resolve" if name == "sweep" else "error",  # it has lists where others have one value
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    # SUPPRESS: where it is not given here, what stands in front of the command counts
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show a traceback with an error"
    )
    if name != "report":
        parser.add_argument("--json", action="store_true", help="JSON instead of a table, for machines")
    return parser


def _reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how models and data are read")
    group.add_argument(
        "--dt", type=float, help="of a .nir file: step of time in s (default: what the file notes, else 1e-3)"
    )
    group.add_argument("--reset", choices=("reset_value", "reset_subtract"), help="of a .nir file (default: as noted)")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="of a .safetensors file: the model to fill in, e.g. package.module:factory or model.nir",
    )
    group.add_argument(
        "--batch-first",
        action=argparse.BooleanOptionalAction,
        help="batches of package.module:loader are (B, T, ...) (default: as the model itself takes them, and "
        "(T, B, ...) for a model that is called step by step)",
    )
    group.add_argument(
        "--batch", type=int, default=64, help="sequences of a batch, of spike files (default: %(default)s)"
    )
    group.add_argument("--limit", type=int, help="use at most so many sequences of each data source")
    group.add_argument(
        "--max-bytes",
        type=int,
        default=MAX_BYTES,
        help="that a model file, or an array of a spike file, may take in memory (default: %(default)s)",
    )
    group.add_argument("--threads", type=int, help="of processors (default: as torch has it)")
