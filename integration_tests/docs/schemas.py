"""Writes docs/schemas/*.json, made from the dataclasses: ``python -m integration_tests.docs.schemas``.

A schema says what a file or an output of a command holds, for programs of any language. Source: JSON Schema, draft
2020-12.
"""

import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from sbc_plugin import settings
from sbc_plugin.demo.run import Row
from sbc_plugin.evaluation.answers import Check
from sbc_plugin.evaluation.comparison import Comparison
from sbc_plugin.evaluation.evaluate import Evaluation
from sbc_plugin.evaluation.inspection import Inspection
from sbc_plugin.evaluation.points import Point
from sbc_plugin.evaluation.recipe import FORMAT, Recipe
from sbc_plugin.evaluation.report import LayerReport
from sbc_plugin.evaluation.rule import LONGEST
from sbc_plugin.evaluation.sweep_table import KEY, SweepTable
from sbc_plugin.evaluation.text import NOT_FINITE
from sbc_plugin.evaluation.verdict import Verdict

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {int: {"type": "integer"}, str: {"type": "string"}, bool: {"type": "boolean"}, NoneType: {"type": "null"}}
CHOICES = {
    "solver": settings.SOLVERS, "scale": settings.SCALES, "order": settings.ORDERS, "method": settings.METHODS,
    "outputs": (*settings.OUTPUTS, None),
}  # fmt: skip
RANGES = {
    "bits": {"minimum": 2, "maximum": 8}, "sparsity": {"minimum": 0, "exclusiveMaximum": 1},
    "damping": {"minimum": 0}, "alpha": {"minimum": 0, "maximum": 1},
}  # fmt: skip
SELECTOR = {"type": "string", "minLength": 1, "maxLength": LONGEST}


def of_type(hint: Any) -> dict[str, Any]:
    """The schema of what JSON holds for a value of this type; numbers that JSON has none of are texts."""
    if hint in PLAIN:
        return dict(PLAIN[hint])
    if hint is float:
        return {"anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]}
    if hint is torch.device:
        return {"type": "string"}
    if is_dataclass(hint):
        return of_fields(hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is list:
        return {"type": "array", "items": of_type(parts[0])}
    if origin is tuple:
        return {"type": "array", "items": of_type(parts[0]), "minItems": len(parts), "maxItems": len(parts)}
    if isinstance(hint, UnionType):
        return {"anyOf": [of_type(part) for part in parts]}
    return {"type": "object"}  # names and values of any kind


def of_fields(kind: Any) -> dict[str, Any]:
    """The schema of a dataclass, all of whose fields are there."""
    return of_object({name: of_type(hint) for name, hint in get_type_hints(kind).items()})


def of_object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """The schema of a dict with these keys and no others; all are required unless some are named."""
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def of_settings(kind: Any) -> dict[str, Any]:
    """The schema of a settings object in a recipe, in which defaults may be left out."""
    hints = get_type_hints(kind)
    properties = {}
    for each in fields(kind):
        schema = of_type(hints[each.name])
        if kind is settings.Budget and each.name == "bits":
            schema = or_null({"type": "array", "items": {"type": "integer"} | RANGES["bits"], "minItems": 1})
        elif each.name == "allocation":
            schema = {"enum": list(settings.ALLOCATIONS if kind is settings.Prune else settings.BIT_ALLOCATIONS)}
        elif each.name in CHOICES:
            schema = {"enum": list(CHOICES[each.name])}
        elif each.name in RANGES:
            schema = {"type": "integer" if hints[each.name] is int else "number"} | RANGES[each.name]
        properties[each.name] = schema
    return of_object(properties, [each.name for each in fields(kind) if each.default is MISSING])


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that may be left open."""
    return {"anyOf": [schema, {"type": "null"}]}


def recipe() -> dict[str, Any]:
    """Of a recipe: a file in YAML or TOML, and a part of a report."""
    parts = {"prune": of_settings(settings.Prune), "quantize": of_settings(settings.Quantize)}
    selector = {"anyOf": [SELECTOR, {"type": "integer"}]}
    own = {name: or_null(schema) for name, schema in parts.items()}
    rule = of_object({"layers": selector, **own, "ignore": PLAIN[bool]}, ["layers"])
    given: dict[str, Any] = {
        "method": {"enum": list(settings.METHODS)},
        **parts,
        "calibration": of_settings(settings.Calibration),
        "ignore": {"type": "array", "items": selector},
        "rules": {"type": "array", "items": rule},
        "backend": {"type": "string"},
        "batch_first": {"type": "boolean"},
        "budget": of_settings(settings.Budget),
    }
    assert set(given) == {each.name for each in fields(Recipe)}
    version = {"type": "integer", "maximum": FORMAT}
    return of_object({"format": version} | {name: or_null(schema) for name, schema in given.items()}, [])


def report() -> dict[str, Any]:
    """Of ``Report.to_dict()``."""
    count, number, by_name = PLAIN[int], of_type(float), {"type": "object"}
    return of_object(
        {
            "format": count,
            "layers": {"type": "array", "items": of_fields(LayerReport)},
            "skipped": by_name | {"additionalProperties": {"type": "string"}},
            "settings": by_name,
            "sparsity": number,
            "layer_sparsity": number,
            "left_alone": count,
            "left_alone_zeros": count,
            "seconds": number,
            "stages": by_name | {"additionalProperties": number},
            "recipe": or_null(recipe()),
            "warnings": by_name | {"additionalProperties": {"type": "string"}},
            "steps": {"type": "array", "items": count},
        }
    )


def comparison() -> dict[str, Any]:
    """Of ``sbc compare --json``."""
    schema = of_fields(Comparison)
    return of_object(schema["properties"] | {"distance": of_type(float)})


def result() -> dict[str, Any]:
    """Of ``sbc compress --json``, and of a report file."""
    evaluation = of_fields(Evaluation)["properties"] | {"comparison": comparison()}
    parts = {"report": report(), "evaluation": or_null(of_object(evaluation)), "verdict": of_fields(Verdict)}
    return of_object({"model": PLAIN[str]} | parts)


def search() -> dict[str, Any]:
    """Of ``sbc search --json``, and of its report file."""
    text, count, number = PLAIN[str], PLAIN[int], of_type(float)
    points = {"type": "array", "items": of_fields(Point)}
    given = {"model": text, "over": text, "max_drop": number, "unit": text, "sequences": count, "seconds": number}
    found = {"chosen": or_null(count), "dense": of_fields(Point), "points": points, "check": or_null(of_fields(Check))}
    return of_object(given | found | {"report": or_null(report()), "answer": text, "noise": text})


SCHEMAS = {
    "search": (search, "What sbc search --json prints, and --report report.json writes"),
    "sweep": (
        lambda: of_object({"model": PLAIN[str]} | of_fields(SweepTable)["properties"]),
        "What sbc sweep --json prints",
    ),
    "sweep-line": (
        lambda: of_object(of_fields(Point)["properties"] | {KEY: PLAIN[str]}),
        "A line of the table of sbc sweep",
    ),
    "recipe": (recipe, "Settings of compress, as a file holds them: sbc compress --recipe"),
    "report": (report, "Report.to_dict()"),
    "compress": (result, "What sbc compress --json prints, and --report report.json writes"),
    "compare": (comparison, "What sbc compare --json prints"),
    "inspect": (lambda: of_fields(Inspection), "What sbc inspect --json prints"),
    "demo": (lambda: of_object({"seed": PLAIN[int]} | of_fields(Row)["properties"]), "A line of sbc demo --json"),
}


def text_of(name: str) -> str:
    """The text of a schema's file."""
    make, title = SCHEMAS[name]
    return json.dumps({"$schema": DIALECT, "title": title} | make(), indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in SCHEMAS:
        (FOLDER / f"{each}.json").write_text(text_of(each))
