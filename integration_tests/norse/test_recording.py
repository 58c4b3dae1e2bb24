"""record_states against simulations written out by hand; the model is given back on any exit."""

from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch.functional.reset import reset_subtract
from torch import Tensor, nn
from torch.testing import assert_close

from integration_tests.models.cases import CASES
from integration_tests.models.networks import BOX, IAF, LIF, LSNN, REFRAC, B, T
from sbc_plugin.norse import record_states

DT = 1e-3


def current(*shape: int) -> Tensor:
    """Strong enough that neurons spike, weak enough that they do not always."""
    return 2.5 * torch.rand(shape or (T, B, 4), dtype=torch.float64)


def test_lif_box_by_hand() -> None:
    model, x = norse.SequentialState(nn.Identity(), norse.LIFBoxCell(BOX, dt=DT)), current()
    v, rows = torch.zeros(B, 4, dtype=torch.float64), []
    for step in x:
        before = v + DT * 300 * (step - v)
        z = (before > 1).double()
        v = (1 - z) * before
        rows.append((before, v, z))
    before, after, z = (torch.stack(column) for column in zip(*rows, strict=True))
    record = record_states(model, x)["1"]
    assert 0 < z.mean() < 1
    assert torch.equal(record.input, x.float())
    # the host computes dt * tau_mem_inv in float32
    assert_close(record.v_before.double(), before, rtol=1e-5, atol=1e-6)
    assert_close(record.v.double(), after, rtol=1e-5, atol=1e-6)
    assert torch.equal(record.spikes.double(), z) and record.i is None


@pytest.mark.parametrize("mode", ["step", "sequence"])
@pytest.mark.parametrize("kind", ["LIF", "LSNN", "IAF", "LIFRefrac"])
def test_v_i_and_spikes_by_hand(kind: str, mode: str) -> None:
    if kind == "LIFRefrac" and mode == "sequence":
        pytest.skip("Norse has no LIFRefrac over time")
    parameters = {"LIF": LIF, "LSNN": LSNN, "IAF": IAF, "LIFRefrac": REFRAC}[kind]
    cell = getattr(norse, kind + ("Cell" if mode == "step" else ""))(parameters, dt=DT)
    x = current()
    v, i, b, rho = (torch.zeros(B, 4, dtype=torch.float64) for _ in range(4))
    b, rows = b + 1, []
    a, s = DT * 400, DT * 250
    for step in x:
        last = v
        if kind == "IAF":
            before = v + step
            z = (before > 2).double()
        elif kind == "LSNN":
            before, i = v + a * (i - v), i - s * i + step
            b = b + DT / 800 * (1 - b)
            z = (before > b).double()
            b = b + 1.8 * z
        else:
            i = i + step
            before = v + a * (i - v)
            i = i - s * i
            z = (before > 1).double()
        v = (1 - z) * before
        if kind == "LIFRefrac":
            blocked = (rho > 0).double()
            before, v, z = (
                (1 - blocked) * before + blocked * last,
                (1 - blocked) * v + blocked * last,
                (1 - blocked) * z,
            )
            rho = (1 - z) * (rho - blocked).clamp_min(0) + 2 * z
        rows.append((before, v, i, z))
    model: nn.Module = norse.SequentialState(cell)
    record = record_states(model.double(), x)["0"]
    before, after, i_all, z_all = (torch.stack(column) for column in zip(*rows, strict=True))
    assert 0 < z_all.mean() < 1
    # the host's parameters are float32
    assert_close(record.v_before, before, rtol=1e-5, atol=1e-6, check_dtype=False)
    assert_close(record.v, after, rtol=1e-5, atol=1e-6, check_dtype=False)
    assert torch.equal(record.spikes.double(), z_all)
    if kind == "IAF":
        assert record.i is None
    else:
        assert_close(record.i, i_all, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_reset_by_subtraction() -> None:
    model = norse.SequentialState(norse.LIFBoxCell(BOX._replace(reset_method=reset_subtract), dt=DT))
    record = record_states(model, 3 * current())["0"]
    assert record.spikes.any() and record.v_before.isfinite().all()
    assert_close(record.v, record.v_before - record.spikes, rtol=1e-6, atol=1e-6)


def test_v_before_of_lsnn_does_not_wait_for_its_threshold_to_adapt() -> None:
    """LSNN compares v with an adapting threshold that follows v_th; with a rate of 0 it never follows."""
    parameters = LSNN._replace(tau_adapt_inv=torch.tensor(0.0))
    record = record_states(norse.SequentialState(norse.LSNNCell(parameters, dt=DT)), 2 * current())["0"]
    assert record.spikes.any()
    assert (record.v_before[record.spikes > 0] > 1).all()


@pytest.mark.parametrize("name", CASES)
def test_every_neuron_of_every_model(name: str) -> None:
    case = CASES[name]
    model, batch = case.model(), case.batch()
    neurons = [
        n for n, m in model.named_modules() if type(m).__name__.startswith(("LI", "IAF", "LSNN")) and hasattr(m, "p")
    ]
    records = record_states(model, batch, case.forward)
    assert set(records) == set(neurons)
    for neuron, record in records.items():
        steps = len(record.input)
        assert steps == (2 * T if name == "neuron twice" else T)
        assert record.spikes.shape[:2] == record.input.shape[:2] == (steps, B)
        assert record.v is not None and record.v.shape == record.spikes.shape
        kind = type(model.get_submodule(neuron)).__name__
        if kind in ("LI", "LICell", "LIBoxCell", "LILinearCell"):
            assert record.v_before is None and torch.equal(record.spikes, record.v)
        else:
            assert set(record.spikes.unique().tolist()) <= {0.0, 1.0}
            if kind == "LIFExCell":  # its threshold shapes the membrane, so lifting it would show another one
                assert record.v_before is None
                continue
            assert record.v_before is not None and record.v_before.shape == record.spikes.shape
            silent = record.spikes == 0
            assert_close(record.v_before[silent], record.v[silent])


def test_recording_does_not_change_the_answer_nor_the_model() -> None:
    for case in CASES.values():
        model, batch = case.model(), case.batch()
        before = case.output(model, batch)
        activations = [m.activation for m in model.modules() if hasattr(m, "activation")]
        model.train()
        record_states(model, batch, case.forward)
        assert all(m.training for m in model.modules())
        assert [m.activation for m in model.modules() if hasattr(m, "activation")] == activations
        assert torch.equal(case.output(model.eval(), batch), before)


def test_an_exception_in_forward_puts_everything_back() -> None:
    case = CASES["step"]
    model = case.model().train()
    originals = [m.activation for m in model.modules() if hasattr(m, "activation")]

    def broken(model: nn.Module, batch: Any) -> None:
        model(batch[0])
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        record_states(model, case.batch(), broken)
    assert [m.activation for m in model.modules() if hasattr(m, "activation")] == originals
    assert all(m.training for m in model.modules()) and not any(m._forward_pre_hooks for m in model.modules())


def test_records_do_not_share_memory_with_the_run() -> None:
    """IAF's default state is the parameter's own tensor, handed to every neuron that uses the defaults."""
    model = norse.SequentialState(norse.IAFCell(IAF))
    x = current()
    record = record_states(model, x.float())["0"]
    record.v.add_(7), record.input.add_(7)
    assert IAF.v_reset.item() == 0 and x.max() < 3
    assert not record.v.requires_grad


def test_batches_as_compress_takes_them() -> None:
    case = CASES["step"]
    model, x = case.model(), case.batch()
    plain = record_states(model, x)["1"]
    for batch in ((x, 3), [x], {"x": x, "y": 0}, x.to_sparse(), x.double(), x.bool()):
        assert torch.equal(record_states(model, batch)["1"].spikes, plain.spikes)
