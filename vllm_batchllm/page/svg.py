# SPDX-License-Identifier: Apache-2.0
"""matplotlib's SVG made fit for a page: small, the same every time, in the page's own colours.

Three inks are placeholders that are replaced by what the page's style sheet says, so that one
picture serves light and dark: text and axes take the colour of the text around the picture.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any, Final

INK: Final = "#010203"
FAINT: Final = "#020304"
PAPER: Final = "#fdfcfb"
_INKS: Final = {INK: "currentColor", FAINT: "var(--line, #c9cdd3)", PAPER: "var(--paper, #ffffff)"}

_NAMESPACE: Final = "http://www.w3.org/2000/svg"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"
_MAX_LABEL_CHARS: Final = 4000
_DROPPED: Final = frozenset({"metadata", "style"})
_ACTIVE: Final = frozenset({"script", "foreignObject", "image", "a", "animate", "set", "style"})
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vllm-batchllm",
    "text.parse_math": False,  # names may hold dollar signs
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "figure.facecolor": "none",
}


def clean(text: str, max_chars: int = 60) -> str:
    """The text on one line, without what XML cannot hold, cut to a length."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def draw_svg(
    size: tuple[float, float],
    draw: Callable[[Any], None],
    titles: Mapping[str, str] | None = None,
) -> str:
    """An SVG document of what `draw` puts onto a matplotlib figure; equal input, equal text.

    Args:
        size: width and height, inches; in a page the picture takes the width that it gets.
        draw: gets the figure. It may read matplotlib's `rcParams`, which hold the page's inks.
        titles: what a browser shows over an artist, by the artist's gid.
    """
    # Imported here: it takes longer than all the rest of a page.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # The browser has other fonts than matplotlib, and draws the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Type", "Format"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    _without_namespaces(root)
    _lighten(root, titles or {})
    return ET.tostring(root, encoding="unicode")


def inline_svg(svg: str, label: str, prefix: str) -> str:
    """An SVG document as an element of a page: named for those who do not see it.

    All its ids get `prefix`, so that pictures of one page do not use each other's parts.

    Raises:
        ValueError: it is no SVG, or it holds something that could act (scripts, links).
    """
    try:
        root = ET.fromstring(svg)
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"a picture is no readable SVG: {error}") from error
    _without_namespaces(root)
    if root.tag != "svg":
        raise ValueError(f"a picture must be an SVG, not <{root.tag}>")
    for element in root.iter():
        _refuse_active(element)
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, prefix + value)
            elif name == "href":
                element.set(name, "#" + prefix + value[1:])
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}"))
    root.set("role", "img")
    root.set("aria-label", clean(label, _MAX_LABEL_CHARS))
    return ET.tostring(root, encoding="unicode")


def _refuse_active(element: ET.Element) -> None:
    if element.tag in _ACTIVE:
        raise ValueError(f"a picture must not hold <{element.tag}>")
    for name, value in element.attrib.items():
        leaves = name == "href" and not value.startswith("#")
        if leaves or name.lower().startswith("on") or "url(" in value.replace("url(#", ""):
            raise ValueError(f"a picture must not hold the attribute {name}={value!r}")


def _without_namespaces(root: ET.Element) -> None:
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
    root.set("xmlns", _NAMESPACE)


def _lighten(root: ET.Element, titles: Mapping[str, str]) -> None:
    """Drop what a page does not need, and put in what it does: its inks, and titles."""
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    font = "ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
    root.set("style", f"stroke-linejoin: round; stroke-linecap: butt; font-family: {font}")
    used = {_target(value) for element in root.iter() for value in element.attrib.values()}
    for element in root.iter():
        for child in [child for child in element if child.tag in _DROPPED]:
            element.remove(child)
        if element.tag not in ("text", "tspan", "title"):
            element.text = None
        element.tail = None
        gid = element.get("id")
        if gid is not None and gid in titles:
            title = ET.Element("title")
            title.text = clean(titles[gid], 300)
            element.insert(0, title)
        if gid not in used:
            element.attrib.pop("id", None)
        if element is not root:
            _restyle(element)


def _target(value: str) -> str | None:
    if value.startswith("#"):
        return value[1:]
    return value[5:-1] if value.startswith("url(#") else None


def _restyle(element: ET.Element) -> None:
    style = element.get("style")
    if style is not None:
        style = re.sub(r"font-family: [^;]*;? ?", "", style)
        for ink, wanted in _INKS.items():
            style = style.replace(ink, wanted)
        element.set("style", style)
    path = element.get("d")
    if path is not None:
        element.set("d", _shorter(path))


def _shorter(path: str) -> str:
    """The same path to a hundredth of a point, which is more than a screen shows.

    Steps become `H` and `V`: a profile is nothing else, and is half as long then.
    """
    parts: list[str] = []
    last = ("", "")
    for command, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        numbers = [f"{float(number):.2f}".rstrip("0").rstrip(".") for number in rest.split()]
        if command == "L" and numbers[0] == last[0]:
            parts.append(f"V{numbers[1]}")
        elif command == "L" and numbers[1] == last[1]:
            parts.append(f"H{numbers[0]}")
        else:
            parts.append(command + " ".join(numbers))
        if numbers:
            last = (numbers[-2], numbers[-1])
    return "".join(parts)
