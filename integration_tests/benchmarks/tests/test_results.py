"""The pages that show figures are those that the benchmark's lines make."""

from integration_tests.benchmarks import few_spikes, finetuning, page, records, tables


def test_the_pages_are_up_to_date() -> None:
    assert page.PAGE.read_text() == page.page()
    assert page.README.read_text() == page.readme()
    assert page.DISTRIBUTED.read_text() == page.distributed()
    assert page.SCALING.read_text() == page.scaling()


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
