"""The pages that show figures are those that the benchmark's lines make."""

from integration_tests.benchmarks import page, records, tables


def test_the_pages_are_up_to_date() -> None:
    assert page.PAGE.read_text() == page.page()
    assert page.README.read_text() == page.readme()


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
