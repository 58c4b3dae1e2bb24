"""The picture and the table of the house, drawn from the imports: ``python -m integration_tests.docs.house``.

Rooms stand on floors, and each solid arrow is an import that runs when the upper room is loaded. An arrow that follows
from two others is left out of the picture; the table has them all.
"""

import ast
import textwrap
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import sbc_plugin
from sbc_plugin.tests import import_graph

DOCS = Path(__file__).parents[2] / "docs"
PICTURE, PAGE = DOCS / "figures" / "house.svg", DOCS / "contributing.md"
START, END = "<!-- made by python -m integration_tests.docs.house: -->", "<!-- end -->"

WIDTH, LEFT, GAP, LANE, BETWEEN = 780, 28, 14, 12, 34  # pixels; the floors' numbers stand left of LEFT
WIDEST = 330
FONT, TITLE, LINE = 12, 14, 15  # sizes of letters, and the distance of two lines of text
LETTER = 6.5  # mean width of a letter of FONT


@dataclass
class Item:
    """What stands on a floor: a room, or the lane in which a long arrow passes it.

    Attributes:
        name: of the room; None for a lane.
        text: lines below the name.
        x: left edge, in pixels.
        y: upper edge, in pixels.
        width: in pixels.
        height: in pixels.
        below: what it leads to, one floor down.
    """

    name: str | None
    text: list[str] = field(default_factory=list)
    x: float = 0
    y: float = 0
    width: float = LANE
    height: float = 0
    below: list["Item"] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def about(room: str) -> str:
    """The first sentence of a room's docstring, without markup."""
    tree = import_graph.trees()[f"{import_graph.NAME}.{room}"]
    paragraph = " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())
    sentence = paragraph.partition(". ")[0].rstrip(".:")
    for markup in (":class:", ":func:", ":mod:", "`", "~"):
        sentence = sentence.replace(markup, "")
    return sentence


def needed(edges: dict[str, frozenset[str]]) -> dict[str, list[str]]:
    """The arrows that do not follow from others."""
    reached: dict[str, set[str]] = {}
    for room in sorted(edges, key=lambda room: len(import_graph.chains(edges)[room])):
        reached[room] = set(edges[room]).union(*(reached[target] for target in edges[room]))
    return {
        room: sorted(target for target in edges[room] if all(target not in reached[other] for other in edges[room]))
        for room in edges
    }


def arrange() -> list[list[Item]]:
    """Rooms and lanes by floor, the ground floor first, in an order that lets few arrows cross."""
    rows = [[Item(room) for room in floor] for floor in import_graph.floors()]
    height = {item.name: floor for floor, row in enumerate(rows) for item in row}
    place = {item.name: item for row in rows for item in row}
    for room, targets in needed(import_graph.rooms()).items():
        for target in targets:
            end = place[target]
            for floor in range(height[target] + 1, height[room]):
                rows[floor].append(Item(None, below=[end]))
                end = rows[floor][-1]
            place[room].below.append(end)
    for _ in range(8):
        for lower, upper in reversed(list(pairwise(rows))):
            _order(lower, {id(item): [above for above in upper if item in above.below] for item in lower}, upper)
        for lower, upper in pairwise(rows):
            _order(upper, {id(item): item.below for item in upper}, lower)
    return rows


def _order(row: list[Item], neighbours: dict[int, list[Item]], other: list[Item]) -> None:
    """Sort a row by where its neighbours stand, between 0 and 1; what has none stays about where it is."""
    place = {id(item): (position + 0.5) / len(other) for position, item in enumerate(other)}

    def wanted(position: int, item: Item) -> float:
        near = [place[id(neighbour)] for neighbour in neighbours[id(item)]]
        return round(sum(near) / len(near) if near else (position + 0.5) / len(row), 6)

    key = {id(item): wanted(position, item) for position, item in enumerate(row)}
    row.sort(key=lambda item: key[id(item)])


def place_items(rows: list[list[Item]], top: float) -> float:
    """Give every item its place and size, the top floor first; where the picture ends."""
    y = top
    for row in reversed(rows):
        boxes = [item for item in row if item.name is not None]
        free = WIDTH - LEFT - GAP * (len(row) - 1) - LANE * (len(row) - len(boxes))
        width = min(WIDEST, free / len(boxes))
        for item in boxes:
            item.text = textwrap.wrap(about(item.name or ""), int((width - 16) / LETTER))
        height = 30 + LINE * max(len(item.text) for item in boxes)
        x = LEFT + (free - width * len(boxes)) / 2
        for item in row:
            item.x, item.y, item.height = x, y, height
            item.width = width if item.name is not None else LANE
            x += item.width + GAP
        y += height + BETWEEN
    return y - BETWEEN


def box(item: Item, title: str) -> list[str]:
    """A room with its name and what it is about."""
    x, y = item.x, item.y
    lines = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{item.width:.1f}" height="{item.height:.1f}" rx="4" '
        'fill="currentColor" fill-opacity="0.06" stroke="currentColor"/>',
        f'<text x="{x + 8:.1f}" y="{y + 19:.1f}" font-size="{TITLE}" font-weight="bold">{escape(title)}</text>',
    ]
    lines += [
        f'<text x="{x + 8:.1f}" y="{y + 36 + LINE * number:.1f}">{escape(line)}</text>'
        for number, line in enumerate(item.text)
    ]
    return lines


def arrows(rows: list[list[Item]]) -> list[str]:
    """Curves from each item down to what it leads to; arrows that end at one box end beside each other."""
    leading: dict[int, list[Item]] = defaultdict(list)
    for row in rows:
        for item in row:
            item.below.sort(key=lambda lower: lower.middle)
            for lower in item.below:
                leading[id(lower)].append(item)
    lines = []
    for row in rows:
        for item in row:
            for number, lower in enumerate(item.below):
                above = sorted(leading[id(lower)], key=lambda upper: upper.middle)
                place = next(place for place, upper in enumerate(above) if upper is item)
                x1, y1 = item.x + item.width * (number + 1) / (len(item.below) + 1), item.y + item.height
                x2, y2 = lower.x + lower.width * (place + 1) / (len(above) + 1), lower.y
                bend = (y1 + y2) / 2
                way = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {bend:.1f} {x2:.1f} {bend:.1f} {x2:.1f} {y2:.1f}"
                if lower.name is None:
                    way += f"V{y2 + lower.height:.1f}"
                head = "" if lower.name is None else ' marker-end="url(#house-arrow)"'
                lines.append(f'<path d="{way}"{head}/>')
    return lines


def picture() -> str:
    """The text of the SVG. It takes the colour of the text around it, or by itself that of the reader's scheme."""
    rows = arrange()
    door = Item("", x=LEFT, width=WIDTH - LEFT, y=2)
    sources = sorted({import_graph.room_of(name) for name in _door()})
    public = ", ".join(name for name in sbc_plugin.__all__ if not name.startswith("__"))
    letters = int((door.width - 16) / LETTER)
    door.text = [
        *textwrap.wrap(public, letters),
        *textwrap.wrap(f"These names come from {', '.join(sources)}.", letters),
    ]
    door.height = 30 + LINE * len(door.text)
    bottom = place_items(rows, door.y + door.height + BETWEEN)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 2} {bottom + 2:.0f}" role="img" '
        f'aria-labelledby="house-title" font-family="system-ui, sans-serif" font-size="{FONT}" fill="currentColor">',
        '<title id="house-title">The rooms of sbc_plugin by floor, and which imports which</title>',
        "<style>svg:root { color: #1f2328 }",
        "@media (prefers-color-scheme: dark) { svg:root { color: #e6edf3 } }</style>",
        '<defs><marker id="house-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>',
        '<g fill="none" stroke="currentColor">',
        *arrows(rows),
        "</g>",
        *box(door, "import sbc_plugin"),
    ]
    for number, row in enumerate(rows, 1):
        lines.append(f'<text x="4" y="{row[0].y + 19:.1f}" font-size="{TITLE}">{number}</text>')
        for item in row:
            lines += box(item, item.name) if item.name is not None else []
    return "\n".join([*lines, "</svg>"]) + "\n"


def _door() -> set[str]:
    """Modules that the public face takes its names from."""
    named = {import_graph.module_of(name) for name in import_graph.found()[import_graph.NAME].at_once}
    return {name for name in named if name and name != import_graph.NAME}


def table() -> str:
    """Floors, rooms and all arrows in Markdown, and the longest chain of modules."""
    now, ever = import_graph.rooms(), import_graph.rooms(on_demand=True)
    lines = ["| floor | room | what it imports | on demand |", "| ---: | --- | --- | --- |"]
    for number, floor in reversed(list(enumerate(import_graph.floors(), 1))):
        for room in floor:
            shown = [
                ", ".join(f"`{target}`" for target in sorted(some)) for some in (now[room], ever[room] - now[room])
            ]
            lines.append(f"| {number} | `{room}` | {shown[0]} | {shown[1]} |")
    chain = [name.removeprefix(f"{import_graph.NAME}.") for name in import_graph.longest_chain()]
    count = sum(map(len, now.values()))
    lines += [
        "",
        f"These are {len(now)} rooms on {len(import_graph.floors())} floors with {count} arrows. The longest chain of "
        f"imports has {len(chain)} modules: " + ", ".join(f"`{name}`" for name in chain) + ".",
    ]
    return "\n".join(lines)


def page() -> str:
    """The page with its table made anew."""
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def write() -> None:
    """The picture, and the table of the page."""
    PICTURE.write_text(picture())
    PAGE.write_text(page())


if __name__ == "__main__":
    write()
