"""The demo on its real data: split, shipped networks, training, and the table."""

from pathlib import Path

import pytest
import torch
from norse.torch import SequentialState
from torch import Tensor, nn

from sbc_plugin import Prune
from sbc_plugin.demo import digits, network
from sbc_plugin.demo.run import BUDGETS, COLUMNS, TITLES, Budget, Row, measure, render, summary
from sbc_plugin.errors import CheckpointError

SHIPPED = range(5)


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load()


def rows_of(events: digits.Events) -> set[bytes]:
    return {sequence.numpy().tobytes() for sequence in events.x.unbind(1)}


def test_test_digits_are_in_no_other_part(data: digits.Digits) -> None:
    training, calibration, test = rows_of(data.training), rows_of(data.calibration), rows_of(data.test)
    assert len(data.training) + len(data.test) == 1797
    assert calibration <= training
    assert not test & training


def test_split_is_the_same_at_each_call_and_touches_no_generator(data: digits.Digits) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again = digits.load()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.test.x, data.test.x) and torch.equal(again.test.labels, data.test.labels)


def test_every_class_is_in_every_part(data: digits.Digits) -> None:
    for events in (data.training, data.calibration, data.test):
        assert events.labels.bincount(minlength=10).min() >= len(events) / 20  # half of an even share


def test_batches_keep_order_and_every_sequence(data: digits.Digits) -> None:
    events = data.test.subset(slice(0, 70))
    batches = events.batches(32)
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    assert torch.equal(torch.cat([x for x, _ in batches], dim=1), events.x.float())
    assert torch.equal(torch.cat([labels for _, labels in batches]), events.labels)


class Oracle(nn.Module):
    """Spikes as the pixels of the ON channel say; forgets nothing, learns nothing."""

    def forward(self, step: Tensor, state: None) -> tuple[Tensor, None]:
        return step[:, 0, 0, :10], state


def test_accuracy_counts_spikes_over_the_sequence() -> None:
    x = torch.zeros(3, 4, 2, 16, 16, dtype=torch.uint8)
    x[:2, 0, 0, 0, 7] = 1  # two spikes for 7,
    x[2, 0, 0, 0, 1] = 1  # one for 1
    x[0, 1, 0, 0, 3] = 1
    x[0, 2, 0, 0, 3] = 1
    x[:, 3, 0, 0, [2, 5]] = 1  # a tie: the lowest wins
    events = digits.Events(x, torch.tensor([7, 3, 4, 2]))
    assert network.spike_counts(Oracle(), x.float())[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 2, 0, 0]
    assert network.accuracy(Oracle(), events, batch=3) == 0.75


@pytest.mark.parametrize("seed", SHIPPED)
def test_shipped_network_reads_digits(seed: int, data: digits.Digits) -> None:
    assert network.accuracy(network.pretrained(seed), data.test) >= 0.93


def test_shipped_networks_are_small_and_differ() -> None:
    files = sorted(network.CHECKPOINTS.glob("*.safetensors"))
    assert len(files) == len(SHIPPED)
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert len({file.read_bytes() for file in files}) == len(SHIPPED)


def test_training_is_reproducible(data: digits.Digits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "EPOCHS", 1)
    few = data.training.subset(slice(0, 64))
    state = torch.random.get_rng_state()
    first, second, other = network.train(7, few), network.train(7, few), network.train(8, few)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        untrained = network.build()
    assert not equal_weights(first, untrained) and not equal_weights(first, other)
    assert equal_weights(first, second)
    network.store(first, 7, tmp_path)
    assert equal_weights(network.pretrained(7, tmp_path), first)


def equal_weights(one: SequentialState, other: SequentialState) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"digits_seed9.*sbc_plugin\.demo\.train --seed 9"):
        network.pretrained(9, tmp_path)


@pytest.fixture(scope="module")
def table(data: digits.Digits) -> dict[str, Row]:
    small = digits.Digits(data.training, data.calibration, data.test.subset(slice(0, 200)))
    rows = list(measure(network.pretrained(0), small, [Budget("95 % sparse", "magnitude", prune=Prune(0.95))]))
    assert [row.method for row in rows] == ["none", "magnitude", "obc", "one shot", "sbc"]
    return {row.method: row for row in rows}


def test_table_ranks_methods_as_the_theory_does(table: dict[str, Row]) -> None:
    # measured on 200 digits, standard error at most 3.5 points: magnitude guesses, M = I loses a quarter, SBC a tenth
    assert table["magnitude"].accuracy < 0.3
    assert table["none"].accuracy > table["sbc"].accuracy > table["obc"].accuracy > 0.5
    assert 0 == table["none"].distance < table["sbc"].distance < table["obc"].distance < table["magnitude"].distance


def test_table_shows_what_is_saved(table: dict[str, Row]) -> None:
    assert table["sbc"].operations < 0.5 * table["none"].operations
    assert table["sbc"].packed_bytes < 0.1 * table["none"].packed_bytes  # 5 % of the weights, and where they stand
    lines = render(list(table.values())).splitlines()
    assert len(lines) == 6 and "SBC" in lines[-1] and f"{table['sbc'].accuracy:.1%}" in lines[-1]


def test_rows_of_several_networks_become_their_mean() -> None:
    rows = [Row("4 bits", "obc", accuracy, 0.1, 1000, 2000, 1.0) for accuracy in (0.8, 0.9, 1.0)]
    line = render(rows).splitlines()[-1]
    assert "90.0% ± 5.8" in line and "2.0 kB" in line  # 0.1 / sqrt(3)


def test_the_end_is_two_sentences_with_the_means() -> None:
    rows = [Row("-", "none", 0.96, 0.0, 9, 8000, 0.0), Row("-", "none", 0.94, 0.0, 9, 8000, 0.0)]
    score = {"magnitude": 0.1, "rtn": 0.2, "obc": 0.7, "one shot": 0.85, "sbc": 0.9}
    rows += [Row(budget.title, name, score[name], 0.1, 9, 400, 1.0) for budget in BUDGETS for name in budget.methods]
    text = summary(rows)
    assert text.count("\n") == 1 and all(line.endswith(".") for line in text.splitlines())
    for number in ("95.0%", "90.0%", "85.0%", "70.0%", "10.0%", "20 times smaller"):
        assert number in text


def test_every_method_and_column_is_explained() -> None:
    explained = {title.strip() for line in COLUMNS.splitlines() for title in line[:20].split(",")}
    titles = {part.strip() for title in TITLES.values() for part in title.split(",")} - {"dense"}
    assert titles | {"accuracy", "spike distance", "synaptic operations", "size", "seconds"} <= explained | {"GPTQ)"}
