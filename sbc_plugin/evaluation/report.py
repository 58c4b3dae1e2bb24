"""What ``compress`` did: a row a layer, what was left out and why, and the settings; as table, dict and JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sbc_plugin.errors import CheckpointError
from sbc_plugin.evaluation.recipe import Recipe
from sbc_plugin.evaluation.text import as_json, of_fields, printable, table
from sbc_plugin.settings import Budget, Calibration, Prune, Quantize

FORMAT = 1
SETTINGS = {"prune": Prune, "quantize": Quantize, "calibration": Calibration, "budget": Budget}


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: in the model.
        kind: of weight and neuron.
        rows: outputs.
        columns: inputs of one row.
        sequences: calibration sequences that reached it.
        samples: rows of X behind its Hessian: time steps and positions.
        sparsity: fraction of zeros.
        bits: of each weight that is not zero.
        loss: relative: 0 = unchanged, 1 = the layer's output removed; before tuning. Where a layer is solved in several
            stages (rounds of pruning; pruning, tuning, quantisation), the sum of these.
        seconds: to solve, in all stages.
        neurons: names of the modules that its weights feed.
    """

    name: str
    kind: str
    rows: int
    columns: int
    sequences: int
    samples: int
    sparsity: float
    bits: int
    loss: float
    seconds: float
    neurons: list[str] = field(default_factory=list)

    def after(self, earlier: "LayerReport") -> "LayerReport":
        """This stage's row, with the loss and the time of the ``earlier`` stages."""
        return replace(self, loss=earlier.loss + self.loss, seconds=earlier.seconds + self.seconds)


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    Attributes:
        layers: a row each, in the order in which they run.
        skipped: name -> reason, for what was left alone or approximated on purpose.
        settings: method and the settings given.
        seconds: of the whole call.
        left_alone: how many weights no layer holds, so that they stay as they were.
        left_alone_zeros: how many of these are zero.
        stages: name -> seconds of each stage, which add up to ``seconds``.
        recipe: the settings of the call with all that they left open as it was decided: the same model, data and
            forward with ``**recipe.arguments()`` give the same bits. None in reports of earlier versions.
        warnings: name of a layer, of neurons, "calibration data" or "output" -> what should be known of it: few or
            alike sequences, classes without one, ties, silence.
        steps: of tuning that were taken, of each phase that could be tuned: rounds of pruning, then quantisation.
    """

    layers: list[LayerReport]
    skipped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    left_alone: int = 0
    left_alone_zeros: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    recipe: Recipe | None = None
    warnings: dict[str, str] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)

    @property
    def weights(self) -> int:
        """How many weights the model has, those that were left alone included."""
        return sum(layer.rows * layer.columns for layer in self.layers) + self.left_alone

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all weights of the model, those that were left alone included."""
        return (self._zeros + self.left_alone_zeros) / self.weights if self.weights else 0.0

    @property
    def layer_sparsity(self) -> float:
        """Fraction of zeros over the weights of all layers together, which is what ``Prune`` asks for."""
        total = self.weights - self.left_alone
        return self._zeros / total if total else 0.0

    @property
    def _zeros(self) -> float:
        return sum(layer.sparsity * layer.rows * layer.columns for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        settings = {
            name: asdict(value) if hasattr(value, "__dataclass_fields__") else value
            for name, value in self.settings.items()
        }
        if settings.get("calibration"):
            device = settings["calibration"]["device"]
            settings["calibration"]["device"] = None if device is None else str(device)
        return {
            "format": FORMAT,
            "layers": [asdict(layer) for layer in self.layers],
            "skipped": dict(self.skipped),
            "settings": settings,
            "sparsity": self.sparsity,
            "layer_sparsity": self.layer_sparsity,
            "left_alone": self.left_alone,
            "left_alone_zeros": self.left_alone_zeros,
            "seconds": self.seconds,
            "stages": dict(self.stages),
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
            "warnings": dict(self.warnings),
            "steps": list(self.steps),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Report":
        """The report from what :meth:`to_dict` returned; ``Report.from_dict(json.loads(text))`` reads its JSON.

        Raises:
            CheckpointError: it is of a newer format, or no report.
        """
        if isinstance(content, Mapping) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise CheckpointError(
                f"the report has format {content['format']}, this version reads {FORMAT}; update sbc-plugin"
            )
        try:
            settings = {
                name: SETTINGS[name](**value) if name in SETTINGS and value is not None else value
                for name, value in content["settings"].items()
            }
            layers = [of_fields(LayerReport, layer) for layer in content["layers"]]
            skipped = {str(name): str(reason) for name, reason in content["skipped"].items()}
            others = (int(content.get("left_alone", 0)), int(content.get("left_alone_zeros", 0)))
            stages = {str(name): float(seconds) for name, seconds in content.get("stages", {}).items()}
            recipe = None if content.get("recipe") is None else Recipe.from_dict(content["recipe"])
            warnings = {str(name): str(text) for name, text in content.get("warnings", {}).items()}
            steps = [int(taken) for taken in content.get("steps", [])]
            return cls(layers, skipped, settings, float(content["seconds"]), *others, stages, recipe, warnings, steps)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"this is no report of compress(): {error!r}; give what to_dict() returned"
            ) from error

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON, in which NaN and infinity are texts, as JSON has no such numbers."""
        return as_json(self.to_dict(), indent)

    def __str__(self) -> str:
        """The table that people read."""
        rows = [
            [
                layer.name,
                layer.kind,
                f"{layer.rows} x {layer.columns}",
                str(layer.sequences),
                str(layer.samples),
                f"{layer.sparsity:.2%}",
                str(layer.bits),
                f"{layer.loss:.4f}",
                f"{layer.seconds:.2f}",
            ]
            for layer in self.layers
        ]
        heads = ["layer", "kind", "weight", "sequences", "samples", "sparsity", "bits", "loss", "seconds"]
        lines = table(heads, rows)
        zeros = f"{self.sparsity:.2%} of all weights are zero"
        if self.left_alone:
            zeros += (
                f", {self.layer_sparsity:.2%} of those in these layers ({self.left_alone:,} weights were left alone)"
            )
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        lines.append(f"{zeros}; {self.seconds:.1f} s" + (f" ({parts})" if parts else ""))
        lines += [f"warning: {printable(name)}: {text}" for name, text in self.warnings.items()]
        lines += [f"note: {printable(name)}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def joined(notes: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """All notes, the reasons of one name behind each other; a reason that is there already is not repeated.

    >>> joined({"0": "M = I"}, {"0": "not pruned", "tuning": "no gradient"})
    {'0': 'M = I; not pruned', 'tuning': 'no gradient'}
    """
    together = dict(notes)
    for name, reason in more.items():
        known = together.get(name, "")
        if reason not in known:
            together[name] = f"{known}; {reason}" if known else reason
    return together
