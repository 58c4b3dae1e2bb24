"""Options that several commands share: what to do, and to which layers."""

import argparse

from sbc_plugin.settings import ALLOCATIONS, BIT_ALLOCATIONS, METHODS, ORDERS, OUTPUTS, SCALES, SOLVERS


def layer_options(parser: argparse.ArgumentParser) -> None:
    """Add those that say which layers settings are for."""
    group = parser.add_argument_group(
        "which layers",
        "SELECTOR is a layer's name as sbc inspect shows it, a pattern ('features.*'), 're:' and a regular expression "
        "of the whole name, or 'type:' and a class (type:Conv2d).",
    )
    group.add_argument(
        "--ignore", action="append", metavar="SELECTOR", help="leave these layers exactly as they are (repeatable)"
    )
    group.add_argument(
        "--rule",
        action="append",
        metavar="RULE",
        help="'SELECTOR: sparsity=0.5 bits=8' or 'SELECTOR: ignore': settings, called as the options are, with a "
        "budget of these layers' own; others are as for all layers (repeatable; the first that matches counts)",
    )
    group.add_argument(
        "--recipe",
        metavar="FILE",
        help="settings in YAML or TOML, as a report leaves them (docs/recipes.md); options override what they name",
    )


def setting_options(parser: argparse.ArgumentParser) -> None:
    """Add those that say what to do to the layers: first what everybody needs, then what few do."""
    group = parser.add_argument_group("what to do")
    group.add_argument("--sparsity", type=float, help="fraction of weights to set to zero, e.g. 0.9")
    group.add_argument("--bits", type=int, help="of each weight, 2 to 8")
    group.add_argument("--pattern", help="of zeros: unstructured (default), N:M such as 2:4, block:K")
    group.add_argument(
        "--tuning",
        type=int,
        metavar="STEPS",
        help="gradient steps towards the dense spikes after the solvers; 0: none (default of sbc: up to 200, at 2 and "
        "3 bits alone 100)",
    )
    group.add_argument(
        "--device", help="where the model runs and layers are solved, e.g. cuda (default: the processor)"
    )
    group = parser.add_argument_group("or what it may cost, in the place of --sparsity and --bits")
    group.add_argument("--budget", metavar="SIZE", help='packed size, as "64 kB", or times smaller, as 20x')
    group.add_argument("--budget-operations", type=float, metavar="N", help="synaptic operations a sequence")
    group.add_argument("--budget-energy", metavar="ENERGY", help='energy a sequence (45 nm proxy), as "50 nJ"')
    group.add_argument("--chip", metavar="FILE", help="what a chip allows: chip.yaml or chip.toml")


def expert_options(parser: argparse.ArgumentParser) -> None:
    """Add those that have a good default. Each sets one attribute of ``Prune``, ``Quantize`` or ``Calibration``."""
    group = parser.add_argument_group("expert: pruning")
    group.add_argument("--allocation", choices=ALLOCATIONS, help="how layers share the zeros (default: lamp)")
    group.add_argument("--solver", choices=SOLVERS, help="which weights go (default: auto)")
    group.add_argument("--rounds", type=int, help="prune in so many, each on what the one before left (default: 1)")
    _switch(group, "--silent-first", "weights from and into neurons that never spike go first (where tuning follows)")
    _switch(group, "--refit", "move the kept weights to their least-squares optimum (yes)")
    _switch(group, "--rescale", "then scale each row so that its membrane keeps its mean square (no)")
    group = parser.add_argument_group("expert: quantisation")
    group.add_argument(
        "--bit-allocation", choices=BIT_ALLOCATIONS, help="how layers share the bits: uniform (default), or by loss"
    )
    group.add_argument("--granularity", help="of scales: channel (default), tensor, group:K")
    group.add_argument("--scale", choices=SCALES, help="how scales are chosen (default: mse)")
    _switch(group, "--symmetric", "codes around 0; without it there is a zero point (yes)")
    group = parser.add_argument_group("expert: method and calibration")
    group.add_argument("--method", choices=METHODS, help="sbc (default), or a baseline")
    group.add_argument("--order", choices=ORDERS, help="of calibration (default: one-shot)")
    group.add_argument(
        "--damping", type=float, help="of the Hessian, as a fraction of its mean diagonal (default: 0.01)"
    )
    group.add_argument(
        "--alpha", type=float, help="share of the dense membrane in the sequential target (default: 0.25)"
    )
    group.add_argument("--max-samples", type=int, metavar="N", help="that a layer takes from each batch (default: all)")
    _switch(group, "--temporal", "filter inputs by the membrane; without it M = I (yes)")
    _switch(group, "--align", "BatchNorm and biases follow the compressed layers (no)")
    group.add_argument(
        "--outputs", choices=OUTPUTS, help="what tuning takes the output for (default: what labels say, else classes)"
    )
    group.add_argument("--memory", metavar="SIZE", help='what the process may hold, as "8 GiB" (default: what is left)')
    group.add_argument(
        "--hessian-device", metavar="DEVICE", help="where Hessians are kept and solved (default: where the weights are)"
    )


def _switch(group: argparse._ArgumentGroup, name: str, help: str) -> None:
    """An option and its ``--no-`` form; None where neither is given, so that a recipe's value stays."""
    text, _, default = help.rpartition(" (")
    group.add_argument(name, action=argparse.BooleanOptionalAction, help=f"{text} (default: {default}")
