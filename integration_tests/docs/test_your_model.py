"""The commands of "Bring your own model" run as they stand, and the recipe gives the same network in every bit."""

import shlex
from pathlib import Path

import pytest
import torch

from integration_tests.docs.test_guides import DOCS
from sbc_plugin import load
from sbc_plugin.cli.parser import main

PAGE = DOCS / "guides" / "your-model.md"
MINE = """
import norse.torch as norse
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.lif = nn.Linear(8, 24), nn.BatchNorm1d(24), norse.LIFBoxCell()
        self.out, self.li = nn.Linear(24, 3), norse.LICell()

    def forward(self, x):  # (B, T, 8) -> (B, 3)
        state, volts, answer = None, None, 0
        for step in x.unbind(1):
            z, state = self.lif(6 * self.norm(self.first(step)), state)
            v, volts = self.li(self.out(z), volts)
            answer = answer + v
        return answer


def model():
    torch.manual_seed(0)
    return Net().eval()


def data(seed, count):
    x = (torch.rand(count, 12, 8, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    with torch.no_grad():
        return DataLoader(TensorDataset(x, model()(x).argmax(1)), batch_size=20)


def calibration():
    return data(1, 60)


def test():
    return data(2, 80)
"""


def test_the_commands_run_and_the_recipe_reproduces_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_own.py").write_text(MINE)
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("sbc ")]
    assert [line.split()[1] for line in lines] == ["inspect", "search", "compress"]
    for line in lines:
        arguments = shlex.split(line.replace("mine:", "mine_own:"))[1:]
        # the page's search takes the tolerance 1; labels of an untrained network are lost sooner
        if arguments[0] == "search":
            arguments[arguments.index("--max-drop") + 1] = "40"
            arguments += ["--tuning", "2"]
        assert main(arguments) == 0, line
    from mine_own import model  # type: ignore[import-not-found]  # written above

    small, again = (load(f"{name}.safetensors", model())[0].state_dict() for name in ("small", "again"))
    assert small.keys() == again.keys() and all(torch.equal(small[name], again[name]) for name in small)
    assert any(not torch.equal(small[name], value) for name, value in model().state_dict().items())
    assert (tmp_path / "page.html").stat().st_size > 10_000
