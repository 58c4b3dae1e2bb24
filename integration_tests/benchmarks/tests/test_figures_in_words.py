"""Figures that stand in sentences of the docs are those of the benchmark's lines."""

from statistics import mean

from integration_tests.benchmarks import page, records

DOCS = page.ROOT / "docs"


def words(name: str) -> str:
    return " ".join((DOCS / name).read_text().split())


def test_what_two_bits_keep() -> None:
    lines = records.read("digits")

    def kept(budget: str, method: str) -> float:
        return 100 * mean(line["accuracy"] for line in lines if (line["budget"], line["method"]) == (budget, method))

    text = words("choosing.md")
    assert f"SBC keeps [{kept('2 bits', 'sbc'):.1f} of {kept('-', 'none'):.1f} %](results.md#digits)" in text
    assert f"by the largest weight it keeps {kept('2 bits', 'published'):.1f} (the row" in text
    assert f"rounding keeps {kept('2 bits', 'rtn'):.1f}." in text
    assert "`2:4` costs less than one point" in text and kept("-", "none") - kept("2:4", "sbc") < 1
    assert abs(kept("-", "none") - kept("4 bits", "rtn")) < 0.5  # "no more than chance explains, even by rounding"


def test_how_much_faster_the_solver_is() -> None:
    by = {line["solver"]: line for line in records.read("solver_speed")}
    ours, greedy, simple = by["auto"], by["obs, B_in = 10"], by["magnitude"]
    text = words("choosing.md")
    assert f"[{greedy['seconds'] / ours['seconds']:.0f} times faster](results.md#solver-speed" in text
    assert ours["loss"] < greedy["loss"]  # "with less loss"
    faster, worse = ours["seconds"] / simple["seconds"], simple["loss"] / ours["loss"]
    assert f'"magnitude" is {faster:.0f} times faster and loses {worse:.1f} times as much' in text


def test_what_few_bits_of_the_membrane_cost() -> None:
    lines = records.read("membrane")
    dense = {line["seed"]: line["accuracy"] for line in lines if line["bits"] == 32}

    def lost(bits: int) -> float:
        found = [line for line in lines if (line["bits"], line["step"]) == (bits, "mae")]
        return 100 * mean(dense[line["seed"]] - line["accuracy"] for line in found)

    assert f"4 bits cost {lost(4):.1f} points with the step of least absolute error" in words("choosing.md")
    assert lost(8) < lost(4)


def test_what_a_spike_distance_went_with() -> None:
    lines = records.read("digits")
    dense = {line["seed"]: line["accuracy"] for line in lines if line["method"] == "none"}

    def lost(low: float, high: float) -> float:
        found = [line for line in lines if low <= line.get("distance", 0.0) < high]
        assert len(found) > 30
        return 100 * mean(dense[line["seed"]] - line["accuracy"] for line in found)

    text = words("reading-the-report.md")
    assert f"about 0.05 have lost {lost(0.03, 0.07):.1f} points in the mean" in text
    assert f"at 0.12 they have lost {lost(0.1, 0.14):.1f}, and at 0.25 they have lost {lost(0.22, 0.28):.1f}." in text
