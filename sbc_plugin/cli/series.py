"""What ``sbc search`` and ``sbc sweep`` do."""

import argparse
from pathlib import Path
from typing import Any

from sbc_plugin.calibration.shares import first_of
from sbc_plugin.checkpoint.atomic import check_target
from sbc_plugin.cli import commands
from sbc_plugin.cli.results import import_plots, rehearse, write_model
from sbc_plugin.cli.series_options import bits_of, sparsities_of
from sbc_plugin.cli.settings import recipe_of
from sbc_plugin.compression.search import search as search_model
from sbc_plugin.compression.sweep import sweep as sweep_model
from sbc_plugin.errors import SettingsError
from sbc_plugin.evaluation.evaluate import evaluate
from sbc_plugin.evaluation.series_page import search_page, sweep_page
from sbc_plugin.evaluation.text import as_json

SEARCHED: dict[str, tuple[tuple[str, ...], Any]] = {  # options that a search replaces, and what the first stands at
    "sparsity": (("sparsity",), 0.5),
    "bits": (("bits",), 8),
    "size": (("budget", "budget_operations", "budget_energy"), "2x"),
}


def search(options: argparse.Namespace) -> None:
    """Find the most compressed network within a tolerance, and write it.

    Raises:
        SettingsError: options that contradict each other.
        CompressionError: as :func:`sbc_plugin.search`, and for the files.
    """
    searched, start = SEARCHED[options.over]
    for name in searched:
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise SettingsError(f"--{option} is what is searched; leave it out, or search --over something else")
    if options.over == "sparsity" and (options.pattern or "").partition(":")[0].isdigit():
        raise SettingsError(f"--pattern {options.pattern} fixes the sparsity; leave it out, or search --over bits")
    setattr(options, searched[0], start)  # which the search replaces
    recipe = recipe_of(options)
    output = commands.target_of(options.output, commands.OUTPUTS)
    page = None if options.report is None else commands.target_of(options.report, commands.PAGES)
    onnx = output.suffix.lower() == ".onnx"
    if onnx and not recipe.grids:
        raise SettingsError(f"{output} holds integers; give --bits, --over bits or size, or write .nir or .safetensors")
    if page is not None:
        check_target(commands.recipe_file(page))
        if page.suffix.lower() == ".html":
            import_plots()
    dense, data, test = _read(options)
    rehearse(output, dense, data, recipe.grids[0] if recipe.grids else None)
    given = recipe.arguments() | {"backend": "brevitas" if onnx else None}
    dense = commands.moved(dense, options.device)
    small, found = search_model(dense, data, test_data=test, max_drop=options.max_drop, over=options.over, **given)
    assert found.report is not None and found.report.recipe is not None  # search made them
    dense, small = commands.moved(dense, "cpu"), commands.moved(small, "cpu")
    write_model(output, small, found.report, first_of(data))
    result = {"model": options.source} | found.to_dict()
    if page is not None:
        with commands.told_as_written(output):
            text = as_json(result, indent=1)
            if page.suffix.lower() == ".html":
                measured = evaluate(dense, small, test, batch_first=recipe.batch_first)
                text = search_page(found, measured, f"{Path(options.source).name}: search")
            commands.write_text(page, text)
            commands.write_text(commands.recipe_file(page), found.report.recipe.to_yaml())
    if options.json:
        print(as_json(result))
        return
    beside = f", {page}, {commands.recipe_file(page)}" if page else ""
    print(f"{found}\n\nwritten: {output} ({output.stat().st_size / 1000:,.1f} kB){beside}")


def sweep(options: argparse.Namespace) -> None:
    """Measure all combinations of sparsities and bits, and write a table.

    Raises:
        SettingsError: options that contradict each other, or no values.
        CompressionError: as :func:`sbc_plugin.sweep`, and for the files.
    """
    sparsities = [] if options.sparsities is None else sparsities_of(options.sparsities)
    bits = [] if options.widths is None else bits_of(options.widths)
    if not sparsities and not bits:
        raise SettingsError("nothing to sweep: give --sparsity 0.5:0.98, --bits 2,4,8, or both")
    table = commands.target_of(options.output, (".jsonl",))
    page = None if options.report is None else commands.target_of(options.report, commands.PAGES[:1])
    if page is not None:
        import_plots()
    options.sparsity, options.bits = next(iter(sparsities), None), next(iter(bits), None)
    given = recipe_of(options).arguments()
    dense, data, test = _read(options)
    dense = commands.moved(dense, options.device)
    found = sweep_model(dense, data, sparsities=sparsities, bits=bits, test_data=test, path=table, **given)
    if page is not None:
        commands.write_text(page, sweep_page(found, f"{Path(options.source).name}: sweep"))
    if options.json:
        print(as_json({"model": options.source} | found.to_dict()))
        return
    print(f"{found}\n\n{found.answer}\nwritten: {table}{f', {page}' if page else ''}")


def _read(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Model, calibration data and test data."""
    model = commands.model_of(options, options.source)
    return model, commands.data_of(options, options.data), commands.data_of(options, options.test)
