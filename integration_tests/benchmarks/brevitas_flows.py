"""Brevitas' PTQ example for images on a trained CNN: rounding, ``gptq_mode``, and ``sbc_mode`` in its place."""

import copy
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import torch
from brevitas.graph.gptq import gptq_mode
from brevitas_examples.imagenet_classification.ptq import ptq_common
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from integration_tests.benchmarks.tables import Line, markdown, mean, spread
from integration_tests.models.image_ptq import OPTIONS, prepared, quantised_model
from integration_tests.models.small_cnn import SmallCNN
from sbc_plugin.brevitas import sbc_mode

MODES = {"rounding": None, "gptq_mode": gptq_mode, "sbc_mode": sbc_mode}
CASES = [
    *((backend, name) for backend in ("fx", "layerwise") for name in ("W4A8", "W3A8", "W3A3")),
    *(("fx", name) for name in ("per tensor", "asymmetric", "MSE", "groups")),
    ("flexml", "W3A8"),
    ("layerwise", "fp4 of OCP"),
]
WIDTH, TRAINING, CALIBRATION, BATCH, EPOCHS = 16, 1197, 300, 100, 20


def digits() -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) from -1 to 1, and labels, in one order for all seeds."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.images).float()[order, None] / 8 - 1, torch.from_numpy(data.target).long()[order]


def trained(seed: int, images: Tensor, labels: Tensor) -> nn.Module:
    """The CNN after some epochs of Adam."""
    torch.manual_seed(seed)
    model = SmallCNN(WIDTH)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimiser.step()
    return model.eval()


def lines(seeds: int = 3) -> Iterator[Line]:
    """One line a case, seed and mode: accuracy on test images, and the error of scores relative to the float ones."""
    images, labels = digits()
    chosen, test = slice(0, CALIBRATION), slice(TRAINING, None)
    loader = list(zip(images[chosen].split(BATCH), labels[chosen].split(BATCH), strict=True))
    for seed in range(seeds):
        dense = trained(seed, images[:TRAINING], labels[:TRAINING])
        with torch.no_grad():
            wanted = dense(images[test])
        known = float((wanted.argmax(1) == labels[test]).double().mean())
        for backend, options in CASES:
            with warnings.catch_warnings(), patch.object(ptq_common, "tqdm", iter):
                warnings.simplefilter("ignore")
                torch.manual_seed(seed)
                model = prepared(copy.deepcopy(dense), backend, images[:1])
                model = quantised_model(model, backend, loader, **OPTIONS[options])
                for mode, context in MODES.items():
                    each = copy.deepcopy(model)
                    if context is not None:
                        with patch.object(ptq_common, "gptq_mode", context):
                            ptq_common.apply_gptq(loader, each, act_order=True, use_quant_activations=True)
                    with torch.no_grad():
                        scores = each(images[test])
                    accuracy = float((scores.argmax(1) == labels[test]).double().mean())
                    error = float((scores - wanted).square().sum() / wanted.square().sum())
                    line = {"backend": backend, "options": options, "seed": seed, "mode": mode, "dense": known}
                    yield line | {"accuracy": accuracy, "error": error}


def table(lines: list[Line]) -> str:
    """Accuracy and error of the scores, of each mode."""
    rows = []
    for case in CASES:
        here = [line for line in lines if (line["backend"], line["options"]) == case]
        of = {mode: [line for line in here if line["mode"] == mode] for mode in MODES}
        accuracies = [spread([100 * line["accuracy"] for line in found]) for found in of.values()]
        errors = [f"{mean([line['error'] for line in found]):.4f}" for found in of.values()]
        rows.append([*case, *accuracies, *errors])
    heads = ["backend", "options", *(f"{mode}, %" for mode in MODES), *(f"{mode}, error" for mode in MODES)]
    dense = [100 * accuracy for _, accuracy in sorted({(line["seed"], line["dense"]) for line in lines})]
    return f"The float network reaches {spread(dense)} %.\n\n{markdown(heads, rows)}"
