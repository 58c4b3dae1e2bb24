"""torch-pruning's own tests pass with SBC in the place of what they test, or differ for a reason that stands here."""

from pathlib import Path

import pytest

from integration_tests.torch_pruning.host_suite import VARIANTS, fetched_tests, run

# Those that take a few seconds together run with every test; the others with `make test-hosts`.
QUICK = (
    *("backward", "cascaded_concat", "concat", "concat_split", "customized_layer", "dependency_graph"),
    *("dependency_lenet", "fully_connected_layers", "group_prune", "multiple_inputs_and_outputs"),
    *("non_feature_dim_cat", "pruning_fn", "single_channel_output", "split", "unused_parameters"),
)
LONG = (
    *("flops", "hessian_importance", "importance_reduction", "interactive_pruner", "isomorphic", "load", "print_tool"),
    *("pruner", "regularization", "reshape", "score_normalization", "serialization", "soft_pruning"),
    *("taylor_importance", "unwrapped_parameters"),
)
WITHOUT_GPU = "benchmark"  # measures times on a GPU, and prunes nothing

# (variant, test) -> the error, for those that differ from stock, and why that is right.
DIFFERENT = {
    # It sums the squared gradients of each sample itself, by methods that no importance but HessianImportance has.
    ("importance", "hessian_importance"): "no attribute 'zero_grad'",
    # It asks for norms that are reduced in ways given by name, and compares them with each other.
    ("importance", "importance_reduction"): "AssertionError",
    # A vision transformer does not run without some of its hidden channels until the script has set its `hidden_dim`
    # anew, so that no rehearsal can show that the cut is right; check=False cuts it.
    ("pruner", "serialization"): "its forward has a size written into it",
    # ConvNeXt's norms take their mean over all channels: cut, the network is not the one without these channels.
    ("pruner", "unwrapped_parameters"): "takes its mean over all channels",
}


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    if fetched_tests() is None:
        pytest.skip("pip cannot fetch torch-pruning's source distribution, which holds its tests")


def check(variant: str, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    expected = DIFFERENT.get((variant, test))
    found = run(variant, f"test_{test}.py")
    assert expected in found if expected else found == ""


@pytest.mark.parametrize("test", QUICK)
@pytest.mark.parametrize("variant", VARIANTS)
def test_quick(variant: str, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(variant, test, tmp_path, monkeypatch)


# After register() a pruner is either the one of the variant "pruner" or torch-pruning's, so that two files are enough.
CASES = [(variant, test) for variant in ("stock", "pruner", "importance") for test in LONG]
CASES += [("registered", test) for test in ("load", "taylor_importance")]


@pytest.mark.hosts
@pytest.mark.parametrize(("variant", "test"), CASES)
def test_long(variant: str, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(variant, test, tmp_path, monkeypatch)


def test_every_file_of_theirs_is_in_the_table() -> None:
    folder = fetched_tests()
    assert folder is not None
    assert {path.stem.removeprefix("test_") for path in folder.glob("test_*.py")} == {*QUICK, *LONG, WITHOUT_GPU}
