import pytest
import torch

from sbc_plugin.core.pruning.patterns import (
    Pattern,
    check_pattern,
    keep_largest,
    parse_pattern,
    pattern_order,
    pattern_zeros,
    smallest,
)
from sbc_plugin.errors import SettingsError


@pytest.mark.parametrize("text", ["unstructured", "2:4", "4:8", "1:4", "7:8", "block:1", "block:16"])
def test_a_parsed_pattern_prints_as_it_was_written(text: str) -> None:
    assert str(parse_pattern(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4:2",
        "4:4",
        "0:4",
        "2:x",
        "x:4",
        "2:",
        ":4",
        "2:4:8",
        "-1:4",
        "2:-4",
        "2.0:4",
        "²:4",
        "block",
        "block:0",
        "Block:4",
    ],
)
def test_nonsense_is_refused_with_what_was_asked(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_pattern(text)
    assert repr(text) in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_layer_that_does_not_fit_is_refused_with_numbers() -> None:
    check_pattern(parse_pattern("2:4"), columns=72, positions=9)
    with pytest.raises(SettingsError, match="multiples of 4, this layer has 6"):
        check_pattern(parse_pattern("2:4"), columns=54, positions=9)
    with pytest.raises(SettingsError, match="multiples of 8, this layer has 4"):
        check_pattern(parse_pattern("block:8"), columns=4)
    with pytest.raises(SettingsError, match=r"10 columns .* 9 kernel positions"):
        check_pattern(Pattern("unstructured"), columns=10, positions=9)


def test_zeros_that_a_pattern_allows() -> None:
    assert pattern_zeros(parse_pattern("unstructured"), 3, 8, 7) == 7
    assert pattern_zeros(parse_pattern("2:4"), 3, 8, 7) == 12
    assert pattern_zeros(parse_pattern("3:4"), 3, 8, 7) == 6
    assert pattern_zeros(parse_pattern("block:4"), 3, 8, 7) == 4


def test_groups_run_along_the_channels_of_one_kernel_position() -> None:
    weight = torch.arange(8 * 9).view(1, 8, 3, 3)  # a convolution's weight: channel, height, width
    order = pattern_order(parse_pattern("2:4"), columns=72, positions=9)
    groups = weight.flatten(1)[0, order].view(-1, 4)
    expected = [weight[0, c : c + 4, y, x].tolist() for y in range(3) for x in range(3) for c in (0, 4)]
    assert groups.tolist() == expected


@pytest.mark.parametrize("count", range(8))
def test_smallest_takes_the_first_of_equals(count: int) -> None:
    score = torch.tensor([2.0, 1.0, 2.0, float("inf"), 2.0, 1.0, float("inf")])
    expected = sorted(range(7), key=lambda i: (float(score[i]), i))[:count]
    assert smallest(score, count).nonzero()[:, 0].tolist() == sorted(expected)


def test_keep_largest_by_group_and_by_block() -> None:
    score = torch.tensor([[3.0, 1.0, 2.0, 2.0], [9.0, 0.0, 1.0, 1.0]])
    assert keep_largest(score, 4, parse_pattern("1:2")).int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]
    assert keep_largest(score, 4, parse_pattern("block:2")).int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
