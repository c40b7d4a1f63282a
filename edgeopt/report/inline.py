"""A chart of matplotlib as SVG that lives in a page: in the page's colours, named for those who cannot see it.

matplotlib draws with stand-in colours; each is replaced by a CSS variable of the page, so that one drawing serves
light and dark. Every chart is drawn twice, for wide and for narrow screens, since text that shrinks cannot be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["Chart", "Sheet", "colour", "draw", "shortened"]

#: Pixels of CSS; one unit of a drawing is one pixel where the page is as wide as this.
WIDE, NARROW = 920, 340

#: Names of the page's CSS variables, which its style sheet gives a value in light and in dark.
TOKENS = (
    "ink", "muted", "line", "card", "compute", "compute-soft", "transfer", "transfer-soft", "overhead", "waiting",
    "accent", "alarm",
)  # fmt: skip


def colour(token: str) -> str:
    """Return the stand-in for one of :data:`TOKENS`."""
    return f"#fe00{TOKENS.index(token):02x}"


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart is called and says, and its drawings as SVG."""

    key: str
    title: str
    description: str
    wide: str
    narrow: str


class Sheet:
    """What one drawing is made on: axes in pixels of the given width, and marks by which its parts can be found."""

    def __init__(self, key: str, width: int) -> None:
        self.key, self.width = key, width
        self.marks: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.figure: Any = None

    @property
    def narrow(self) -> bool:
        """Whether it is for a phone."""
        return self.width == NARROW

    def axes(self, height: float, left: float = 8, right: float = 8, top: float = 6, bottom: float = 42) -> Axes:
        """Return the axes of a drawing that is ``height`` pixels high, margins in pixels around them."""
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(self.width / 72, height / 72))
        box = (left, bottom, self.width - left - right, height - top - bottom)
        axes = self.figure.add_axes([box[0] / self.width, box[1] / height, box[2] / self.width, box[3] / height])
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(colour("line"))
        axes.grid(axis="x", color=colour("line"), linewidth=0.8)
        axes.tick_params(length=0, labelsize=12, labelcolor=colour("muted"), pad=6)
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(nbins=4 if self.narrow else 8)
        return axes

    def mark(self, artist: Artist, tip: str, **data: Any) -> None:
        """Make a part findable: by an id, by ``data-`` attributes, and for people by a tip."""
        identity = f"{self.key}-{len(self.marks)}"
        artist.set_gid(identity)
        self.marks[identity] = (tip, data)


def draw(key: str, title: str, description: str, paint: Callable[[Sheet], None]) -> Chart:
    """Draw a chart for wide and for narrow screens.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib

    drawings = []
    for size, width in (("wide", WIDE), ("narrow", NARROW)):
        sheet = Sheet(f"{key}-{size}", width)
        settings = {
            "svg.fonttype": "none",
            "svg.hashsalt": sheet.key,
            "text.parse_math": False,  # a dollar in a name is a dollar
            "text.color": colour("ink"),
            "axes.labelcolor": colour("muted"),
            "axes.labelsize": 12,
            "font.family": "DejaVu Sans",
            "path.simplify": False,
        }
        with matplotlib.rc_context(settings):
            paint(sheet)
            stream = io.StringIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            sheet.figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
        drawings.append(_inline(stream.getvalue(), sheet, title, description))
    return Chart(key, title, description, *drawings)


def shortened(text: str, most: int) -> str:
    """Return at most so many characters, an ellipsis for what is left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _inline(text: str, sheet: Sheet, title: str, description: str) -> str:
    root = ElementTree.fromstring(text)
    prefix = f"{sheet.key}-"
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style speaks of every element of whatever it is put into: the page's, too.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        identity = attributes.get("id", "")
        if identity in sheet.marks:
            tip, data = sheet.marks[identity]
            attributes |= {f"data-{name}": str(value) for name, value in data.items()}
            label = ElementTree.Element("title")
            label.text = tip
            element.insert(0, label)
        elif identity:
            attributes["id"] = prefix + identity
        for name in ("href", "clip-path"):
            if name in attributes:
                attributes[name] = attributes[name].replace("#", f"#{prefix}")
        if "style" in attributes:
            attributes["style"] = _restyled(attributes["style"])
        element.attrib.clear()
        element.attrib.update(attributes)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    names = {"title": f"{prefix}title", "desc": f"{prefix}desc"}
    root.attrib |= {"role": "img", "aria-labelledby": names["title"], "aria-describedby": names["desc"]}
    root.attrib["class"] = "chart " + ("narrow" if sheet.narrow else "wide")
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(tag, {"id": names[tag]})
        label.text = words
        root.insert(place, label)
    return ElementTree.tostring(root, encoding="unicode")


def _restyled(style: str) -> str:
    """Put the page's variables for stand-ins, and leave the font to the page."""
    style = re.sub(r"#fe00([0-9a-f]{2})", lambda match: f"var(--{TOKENS[int(match[1], 16)]})", style)
    return re.sub(r"font: (?:(bold|\d{3}) )?([\d.]+px)[^;]*", _font, style)


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
