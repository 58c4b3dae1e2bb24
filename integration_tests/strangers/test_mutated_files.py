"""Mutated files are read right or refused, in bounded time and memory, and no other file is opened."""

from pathlib import Path

import h5py
import pytest

from integration_tests.strangers.mutated_files import Outcome, examine
from integration_tests.strangers.mutations import KINDS, mutated

FILES = 30  # of each kind


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    outcomes = {seed: examine(mutated(kind, seed, tmp_path)) for seed in range(FILES)}
    assert {seed: outcome for seed, outcome in outcomes.items() if not outcome.fine} == {}
    assert "refused" in {outcome.result for outcome in outcomes.values()}


def test_a_kind_and_a_seed_give_one_file(tmp_path: Path) -> None:
    for kind in KINDS:
        assert mutated(kind, 7, tmp_path).read_bytes() == mutated(kind, 7, tmp_path).read_bytes()


def test_files_that_are_opened_elsewhere_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By HDF5 itself, and by Python."""
    from integration_tests.strangers import mutated_files

    path = mutated("nir-items", 0, tmp_path)
    outside = tmp_path / "outside"

    def linked() -> None:
        with h5py.File(path, "w") as file:
            file["x"] = h5py.ExternalLink(str(outside / "other.h5"), "/w")
            file["x"][()]

    for way in (linked, (outside / "secret").read_bytes):
        monkeypatch.setattr(mutated_files, "_ways", lambda _, way=way: [way])
        assert examine(path).result.startswith("opened")


def test_outcomes_that_are_not_fine() -> None:
    assert Outcome("read", 1.0, 2**20).fine and Outcome("refused", 0.0, 0).fine
    assert not any(outcome.fine for outcome in (Outcome("KeyError: x", 0.0, 0), Outcome("read", 21.0, 0),
                                                Outcome("refused", 0.0, 2**31)))  # fmt: skip
