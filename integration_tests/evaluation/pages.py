"""Pages of a report, a search and a sweep of the demo: ``python -m integration_tests.evaluation.pages FOLDER``."""

import sys
from pathlib import Path
from typing import Any

import norse.torch as norse
import torch
from torch import nn

from sbc_plugin import Calibration, Prune, Quantize, compress, evaluate, search, sweep
from sbc_plugin.calibration.driver import drive_steps
from sbc_plugin.demo import digits, network
from sbc_plugin.evaluation import page, search_page, sweep_page

ONE_SHOT = Calibration(tuning=0)


def pages() -> dict[str, str]:
    """By name, the text of each page, of the demo's network on 600 test sequences; a minute."""
    data = digits.load()
    return _pages(network.pretrained(0), data.calibration.batches(100), data.test.batches(100)[:6])


def small_pages() -> dict[str, str]:
    """The same of a small network in little time, and a report of which nothing was measured."""
    torch.manual_seed(0)
    cell = norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=torch.tensor(0.3)))
    model = norse.SequentialState(nn.Linear(8, 24), cell, nn.Linear(24, 4), norse.LIFBoxCell(cell.p))
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(12, 80, 8, generator=generator) < 0.4).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 3
        labels = drive_steps(model, x).sum(0).argmax(1)
    return _pages(model, [(x[:, :40], labels[:40])], [(x[:, 40:], labels[40:])])


def _pages(model: nn.Module, calibration: list[Any], test: list[Any]) -> dict[str, str]:
    both: dict[str, Any] = {"prune": Prune(0.9), "quantize": Quantize(3), "calibration": ONE_SHOT}
    small, report = compress(model, calibration, **both)
    alone = page(report)
    found = {"report": page(report, evaluate(model, small, test), "compression report"), "alone": alone}
    small, searched = search(model, calibration, test_data=test, max_drop=10.0, calibration=ONE_SHOT)
    found["search"] = search_page(searched, evaluate(model, small, test), "search")
    grid: dict[str, Any] = {"sparsities": (0.5, 0.8, 0.9, 0.95), "bits": (2, 4, 8)}
    table = sweep(model, calibration, **grid, test_data=test, calibration=ONE_SHOT)
    return found | {"sweep": sweep_page(table, "sweep")}


if __name__ == "__main__":
    for name, text in pages().items():
        Path(sys.argv[1], f"{name}.html").write_text(text, encoding="utf-8")
