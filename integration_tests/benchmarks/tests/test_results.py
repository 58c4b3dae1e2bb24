"""The pages that show figures are those that the benchmark's lines make."""

from integration_tests.benchmarks import few_spikes, finetuning, glance, page, records, tables
from integration_tests.benchmarks.subjects import SUBJECTS


def test_the_pages_are_up_to_date() -> None:
    assert page.PAGE.read_text() == page.page()
    assert page.README.read_text() == page.readme()
    assert page.DISTRIBUTED.read_text() == page.distributed()
    assert page.SCALING.read_text() == page.scaling()
    assert page.CHOOSING.read_text() == page.choosing()


def test_every_figure_was_drawn_from_the_lines() -> None:
    assert page.stale_figures() == []


def test_sbc_is_ahead_at_95_percent_on_every_network() -> None:
    chosen = [line for line in records.read("digits") if line["budget"] == "95 % sparse"]
    scores = {
        method: [x["accuracy"] for x in chosen if x["method"] == method] for method in ("sbc", "obc", "magnitude")
    }
    assert len(scores["sbc"]) == 5
    for baseline in ("obc", "magnitude"):
        ahead = [ours - theirs for ours, theirs in zip(scores["sbc"], scores[baseline], strict=True)]
        assert tables.mean(ahead) > 2 * tables.standard_error(ahead)
        assert min(ahead) > 0


def test_sbc_loses_least_right_after_channels_are_cut_from_convolutions() -> None:
    chosen = [line for line in records.read("finetuning") if line["budget"] == finetuning.CUT]
    for network in (finetuning.CNN, "digits"):
        by = {(line["method"], line["seed"]): line for line in chosen if line["network"] == network}
        assert len({line["products"] for line in by.values()}) == 1
        for method in finetuning.METHODS[1:]:
            ahead = [by["sbc", seed]["accuracy"] - by[method, seed]["accuracy"] for seed in finetuning.SEEDS]
            assert tables.mean(ahead) > 2 * tables.standard_error(ahead)


def test_default_tuning_gains_where_outputs_are_tied_or_silent() -> None:
    """In the mean of all, and on no network and budget does it cost more than the noise."""
    pairs = few_spikes.pairs_of(records.read("few_spikes"))
    assert len(pairs) == 2 * len(few_spikes.SUBJECTS)
    gains = [few_spikes.mean_gain(some) for some in pairs.values()]
    assert tables.mean([gain for gain, _ in gains]) > 2 * tables.standard_error([gain for gain, _ in gains])
    assert all(gain >= -2 * noise for gain, noise in gains)


def test_the_readme_says_how_much_smaller_networks_become() -> None:
    cases = {name: records.read(name) for name in SUBJECTS}
    mild, hard = (
        [glance.times_smaller(lines, budget, method) for lines in cases.values() if tables.lost(lines, budget, method)]
        for budget, method in ((glance.MILD, "sbc"), (glance.BUDGET, "tuned"))
    )
    assert f"{min(mild):.0f} to {max(hard):.0f} times smaller" in page.README.read_text()


def test_the_five_lines_are_means_of_the_lines() -> None:
    def line(method: str, budget: str, accuracy: float, size: int, seconds: float = 1.0) -> dict[str, object]:
        return {
            "seed": 0, "method": method, "budget": budget, "accuracy": accuracy, "packed_bytes": size,
            "processor_seconds": seconds,
        }  # fmt: skip

    def case(off: float) -> list[dict[str, object]]:
        found = [line("none", "-", 0.9, 1000)]
        for budget, size in ((glance.MILD, 125), (glance.BUDGET, 40), (glance.FEW, 50)):
            found += [line(name, budget, 0.9 - off, size) for name in ("sbc", "obc", "magnitude", "rtn")]
            found.append(line("tuned", budget, 0.9 - off / 2, size, 3.0))
        return found

    text = " ".join(glance.five_lines({"a": case(0.02), "b": case(0.04)}).split())
    assert "2 networks become 8 to 8 times smaller, and one shot loses at most 4.0 points" in text
    assert "90 % zeros and 4 bits cost 1.5 points on average** (at most 2.0)" in text
    assert "3.0 points on average. M = I costs 3.0, less than one point more than one shot on 2 of 2" in text
    assert "takes 3 to 3 times as long" in text
