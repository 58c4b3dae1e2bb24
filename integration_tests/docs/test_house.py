"""The picture of the house and the table beside it show the imports as they are."""

import re
from xml.etree import ElementTree

from integration_tests.docs import house
from sbc_plugin.tests import import_graph

AGAIN = "run python -m integration_tests.docs.house"


def test_the_picture_shows_the_imports_as_they_are() -> None:
    assert house.PICTURE.read_text() == house.picture(), AGAIN


def test_the_table_lists_the_imports_as_they_are() -> None:
    text = house.PAGE.read_text()
    assert text.count(house.START) == text.count(house.END) == 1
    assert text == house.page(), AGAIN


def test_every_room_is_drawn_in_letters_that_can_be_read() -> None:
    root = ElementTree.fromstring(house.picture())
    texts = [
        (element.text, element.get("font-size") or root.get("font-size")) for element in root.iter() if element.text
    ]
    assert set(import_graph.rooms()) <= {text for text, _ in texts}
    assert all(float(size or 0) >= 12 for _, size in texts)


def test_arrows_point_down() -> None:
    for way in re.findall(r'<path d="M(.*?)" marker-end', house.picture()):
        numbers = [float(number) for number in re.findall(r"[\d.]+", way)]
        assert numbers[1] < numbers[-1]


def test_arrows_that_follow_from_others_are_left_out() -> None:
    edges = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset[str]()}
    assert house.needed(edges) == {"a": ["b"], "b": ["c"], "c": []}


def test_the_flow_names_files_that_exist() -> None:
    _, _, flow = house.PAGE.read_text().partition("## The flow")
    files = re.findall(r"[ ,]((?:\w+/)?\w+\.py)", flow)
    assert len(files) > 8
    assert not [file for file in files if not (import_graph.PACKAGE / file).exists()]
