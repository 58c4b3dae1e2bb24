"""The table of models and what discovery finds in each; ``CASES`` by name."""

from typing import Any

import nir
import norse.torch as norse
import numpy as np
import torch
from norse.torch.functional.reset import reset_subtract
from torch import nn

from integration_tests.models import networks as models
from integration_tests.models.networks import BOX, IAF, LI, LIF, LSNN, REFRAC, B, Case, Found, T, over_time

IMAGE = (T, B, 2, 6, 6)
EX = norse.LIFExParameters(tau_mem_inv=torch.tensor(400.0))
RATES = torch.tensor([400.0, 100.0, 400.0, 50.0])


def per_neuron() -> nn.Module:
    """Learned time constants: three different ones among four neurons, and one per feature map."""
    box = norse.LIFBoxParameters(tau_mem_inv=RATES)
    maps = norse.LIFBoxParameters(tau_mem_inv=RATES[:3, None, None])
    return norse.SequentialState(
        nn.Conv2d(2, 3, 3), norse.LIFBoxCell(maps), nn.Flatten(), nn.Linear(48, 4), norse.LIFBoxCell(box)
    )


def nir_graph() -> nn.Module:
    """A recurrent CubaLIF net as NIR files hold it: fc, cascade of synapse and membrane, Linear back, readout."""
    generator = np.random.default_rng(0)

    def weight(rows: int, columns: int) -> Any:
        return generator.normal(size=(rows, columns)).astype(np.float32)

    def cuba(n: int) -> nir.CubaLIF:
        return nir.CubaLIF(
            tau_syn=np.linspace(2e-3, 4e-3, n, dtype=np.float32), tau_mem=np.full(n, 4e-3, np.float32),
            r=np.ones(n, np.float32), v_leak=np.zeros(n, np.float32), v_threshold=np.full(n, 0.5, np.float32),
            v_reset=np.zeros(n, np.float32), w_in=np.ones(n, np.float32),
        )  # fmt: skip

    nodes = {
        "input": nir.Input({"input": np.array([5])}),
        "fc1": nir.Affine(weight(4, 5), np.zeros(4, np.float32)),
        "lif1": cuba(4),
        "w_rec": nir.Affine(0.3 * weight(4, 4), np.zeros(4, np.float32)),
        "fc2": nir.Affine(weight(3, 4), np.zeros(3, np.float32)),
        "lif2": cuba(3),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "fc1"), ("fc1", "lif1"), ("lif1", "w_rec"), ("w_rec", "lif1")]
    edges += [("lif1", "fc2"), ("fc2", "lif2"), ("lif2", "output")]
    return models.imported(nir.NIRGraph(nodes, edges), dt=1e-3, reset_method=reset_subtract)


def sequential(*modules: nn.Module) -> norse.SequentialState:
    return norse.SequentialState(*modules)


CASES: dict[str, Case] = {
    "step": Case(
        lambda: sequential(nn.Linear(5, 6), norse.LIFBoxCell(BOX), nn.Linear(6, 4), norse.LIFCell(LIF)),
        (T, B, 5),
        (Found("0", "Linear > LIFBoxCell", "lif_box"), Found("2", "Linear > LIFCell", "lif")),
    ),
    "nested": Case(
        lambda: sequential(
            sequential(nn.Linear(5, 6), norse.LIFBoxCell(BOX), nn.Dropout(0.5)),
            sequential(nn.Linear(6, 4, bias=False), norse.IAFCell(IAF), sequential(nn.Linear(4, 3), norse.LICell(LI))),
        ),
        (T, B, 5),
        (
            Found("0.0", "Linear > LIFBoxCell", "lif_box"),
            Found("1.0", "Linear > IAFCell", "iaf"),
            Found("1.2.0", "Linear > LICell", "lif"),
        ),
        over_time,
    ),
    "conv": Case(
        lambda: sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), norse.LIFBoxCell(BOX), nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 2, groups=2, stride=1), nn.AvgPool2d(2), norse.LIFRefracCell(REFRAC),
            nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3), nn.BatchNorm1d(3), norse.LICell(LI),
        ),
        IMAGE,
        (
            Found("0", "Conv2d > LIFBoxCell", "lif_box"),
            Found("4", "Conv2d > LIFRefracCell", "lif"),
            Found("9", "Linear > LICell", "lif"),
        ),
    ),
    "lift": Case(
        lambda: sequential(
            norse.Lift(nn.Conv2d(2, 4, 3, stride=2, dilation=1)), norse.LIF(LIF), nn.Flatten(2),
            norse.Lift(nn.Linear(16, 5)), norse.IAF(IAF), norse.Lift(nn.Linear(5, 3)), norse.LI(LI),
        ),
        IMAGE,
        (
            Found("0.lifted_module", "Conv2d > LIF", "lif"),
            Found("3.lifted_module", "Linear > IAF", "iaf"),
            Found("5.lifted_module", "Linear > LI", "lif"),
        ),
    ),
    "mixed": Case(
        lambda: sequential(
            nn.Linear(5, 6), norse.LSNN(LSNN), norse.Lift(nn.Linear(6, 4)), models.Lifted(norse.LIFBoxCell(BOX)),
            nn.Linear(4, 3), norse.LIF(LIF),
        ),
        (T, B, 5),
        (
            Found("0", "Linear > LSNN", "lif", "sequence"),
            Found("2.lifted_module", "Linear > LIFBoxCell", "lif_box"),
            Found("4", "Linear > LIF", "lif", "sequence"),
        ),
    ),
    "lifted stack": Case(
        lambda: norse.Lift(sequential(nn.Linear(5, 6), norse.LSNNCell(LSNN), nn.Linear(6, 3), norse.LIFCell(LIF))),
        (T, B, 5),
        (Found("lifted_module.0", "Linear > LSNNCell", "lif"), Found("lifted_module.2", "Linear > LIFCell", "lif")),
    ),
    "conv1d and conv3d": Case(
        lambda: sequential(
            nn.Conv3d(1, 2, (1, 2, 2), stride=(1, 2, 1), padding=(0, 1, 0)), norse.LIFCell(LIF),
            nn.AvgPool3d((2, 1, 2)), nn.Flatten(2),
            nn.Conv1d(2, 3, 3, dilation=2, padding="same", padding_mode="circular"), nn.AvgPool1d(2),
            norse.LIFBoxCell(BOX), nn.AdaptiveAvgPool1d(2),
        ),
        (T, B, 1, 2, 4, 5),
        (Found("0", "Conv3d > LIFCell", "lif"), Found("4", "Conv1d > LIFBoxCell", "lif_box")),
    ),
    "loop, sum": Case(
        models.Loop, (T, B, 5),
        (
            Found("fc1", "Linear > LIFCell", "lif"),
            Found("fc2", "Linear > LIFBoxCell", "lif_box"),
            Found("out", "Linear > readout (sum)", "sum"),
        ),
    ),
    "loop, each step": Case(
        lambda: models.Loop("each"), (T, B, 5),
        (
            Found("fc1", "Linear > LIFCell", "lif"),
            Found("fc2", "Linear > LIFBoxCell", "lif_box"),
            Found("out", "Linear > readout", "delta"),
        ),
    ),
    "SEW": Case(
        lambda: models.Residual("spikes"), (T, B, 2, 4, 4),
        (
            Found("conv1", "Conv2d > LIFBoxCell", "lif_box"),
            Found("conv2", "Conv2d > LIFBoxCell", "lif_box"),
            Found("fc", "Linear > LICell", "lif"),
        ),
    ),
    "membrane shortcut": Case(
        lambda: models.Residual("membrane"), (T, B, 2, 4, 4),
        (
            Found("conv1", "Conv2d > LIFBoxCell", "lif_box"),
            Found("conv2", "Conv2d > LIFBoxCell", "lif_box"),
            Found("down", "Conv2d > LIFBoxCell", "lif_box"),
            Found("fc", "Linear > LICell", "lif"),
        ),
    ),
    "weight twice": Case(
        lambda: models.Twice("weight"), (T, B, 5), (Found("fc1", "Linear > LIFCell", "lif", "step step"),)
    ),
    "neuron twice": Case(
        lambda: models.Twice("neuron"), (T, B, 5),
        (Found("fc1", "Linear > LIFCell", "lif"), Found("fc2", "Linear > LIFCell", "lif")),
    ),
    "direct coding": Case(
        models.DirectCoding, (B, 2, 5, 5),
        (Found("conv", "Conv2d > LIFBoxCell", "lif_box", "constant"), Found("fc", "Linear > readout (sum)", "sum")),
    ),
    "merged": Case(
        models.Merged, (T, B, 2, 6, 6),
        (Found("conv", "Conv2d > LIF", "lif", "merged"), Found("fc", "Linear > LIF", "lif", "sequence")),
    ),
    "LIFRecurrentCell": Case(
        lambda: sequential(norse.LIFRecurrentCell(5, 4, p=LIF), nn.Linear(4, 3), norse.LICell(LI)),
        (T, B, 5),
        (Found("0", "LIFRecurrentCell", "lif"), Found("1", "Linear > LICell", "lif")),
    ),
    "LIFRecurrent": Case(
        lambda: sequential(nn.Linear(5, 5), norse.LIFRecurrent(5, 4, p=LIF), norse.Lift(nn.Linear(4, 3)), norse.LI(LI)),
        (T, B, 5),
        (
            Found("0", "Linear > LIFRecurrent", "lif", "sequence", "no neuron before the input weights"),
            Found("1", "LIFRecurrent", "lif"),
            Found("2.lifted_module", "Linear > LI", "lif"),
        ),
    ),
    "LSNNRecurrentCell": Case(
        lambda: sequential(norse.LSNNRecurrentCell(5, 4, p=LSNN), norse.LIFRefracRecurrentCell(4, 3, p=REFRAC)),
        (T, B, 5),
        (Found("0", "LSNNRecurrentCell", "lif"), Found("1", "LIFRefracRecurrentCell", "lif")),
    ),
    "LSNNRecurrent": Case(
        lambda: sequential(norse.LSNNRecurrent(5, 4, p=LSNN), norse.LIFRefracRecurrent(4, 3, p=REFRAC)),
        (T, B, 5),
        (Found("0", "LSNNRecurrent", "lif"), Found("1", "LIFRefracRecurrent", "lif")),
    ),
    "attention": Case(
        models.Attention, (T, B, 3, 4), tuple(Found(name, "Linear > LIF", "lif", "sequence") for name in "qkvo")
    ),
    "max pooling": Case(
        lambda: sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), norse.LIFBoxCell(BOX)),
        IMAGE, (Found("0", "Conv2d > LIFBoxCell", "delta", note="MaxPool2DWithIndices between"),),
    ),
    "not linear": Case(
        lambda: sequential(nn.Linear(5, 4), norse.LIFExCell(EX), nn.Linear(4, 3), norse.LIFBoxCell(BOX)),
        (T, B, 5),
        (
            Found("0", "Linear > LIFExCell", "delta", note="LIFExCell is not linear below threshold: M = I"),
            Found("2", "Linear > LIFBoxCell", "lif_box"),
        ),
    ),
    "concat": Case(
        models.Concat, (T, B, 5),
        (
            Found("left", "Linear > LIFBoxCell", "lif_box"),
            Found("right", "Linear > LIFBoxCell", "lif_box"),
            Found("fc", "Linear > LIFBoxCell", "lif_box"),
        ),
    ),
    "separable": Case(
        lambda: sequential(
            nn.Conv2d(2, 4, 3, groups=2, padding=1, bias=False), nn.Conv2d(4, 3, 1), norse.LIFBoxCell(BOX)
        ),
        (T, B, 2, 4, 4),
        (
            Found("0", "Conv2d > 1", "lif_box", note="no neuron before '1'; its kernel counts"),
            Found("1", "Conv2d > LIFBoxCell", "lif_box"),
        ),
    ),
    "forgetful": Case(
        models.Forgetful, (T, B, 5),
        (Found("fc", "Linear > LIFBoxCell", "delta", note="state is discarded after each step"),),
    ),
    "own recurrence": Case(
        models.OwnRecurrence, (T, B, 5), (Found("w_in + w_rec", "Linear + Linear > LIFCell", "lif"),)
    ),
    "NIR graph": Case(
        nir_graph, (T, B, 5),
        (
            Found("fc1 + w_rec", "Linear + Linear > LIFBoxCell", "lif_box > lif_box"),
            Found("fc2", "Linear > LIFBoxCell", "lif_box > lif_box"),
        ),
        over_time,
    ),
    "readout with weights": Case(
        lambda: sequential(nn.Linear(5, 6), norse.LIFBoxCell(BOX), norse.LILinearCell(6, 3, LI)),
        (T, B, 5), (Found("0", "Linear > LIFBoxCell", "lif_box"), Found("2", "LILinearCell", "lif")),
    ),
    "transposed": Case(
        lambda: sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), norse.LIFBoxCell(BOX),
            nn.AvgPool2d(2), nn.Flatten(2), nn.ConvTranspose1d(4, 3, 2, dilation=2), norse.LIFCell(LIF),
            nn.AvgPool1d(2), nn.Unflatten(2, (1, 19, 1)), nn.ConvTranspose3d(3, 2, (1, 2, 1)), norse.LICell(LI),
        ),
        IMAGE,
        (
            Found("0", "ConvTranspose2d > LIFBoxCell", "lif_box"), Found("4", "ConvTranspose1d > LIFCell", "lif"),
            Found("8", "ConvTranspose3d > LICell", "lif"),
        ),
    ),
    "pointwise in time": Case(
        lambda: sequential(
            norse.LConv2d(2, 4, (3, 2), stride=(1, 2), padding=1, groups=2), norse.LIF(LIF),
            norse.Lift(nn.AvgPool2d(2)), norse.LConv2d(4, 3, 2), norse.IAF(IAF),
        ),
        IMAGE,
        (Found("0", "LConv2d > LIF", "lif", "sequence"), Found("3", "LConv2d > IAF", "iaf", "sequence")),
    ),
    "per neuron": Case(
        per_neuron, IMAGE,
        (Found("0", "Conv2d > LIFBoxCell", "lif_box"), Found("3", "Linear > LIFBoxCell", "lif_box")),
    ),
}  # fmt: skip
