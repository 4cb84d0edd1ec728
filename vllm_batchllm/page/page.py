# SPDX-License-Identifier: Apache-2.0
"""What a report says, as plain values, and the one HTML file that shows it.

The page is self-contained: no script, no network, styles and pictures inside. Every text is
escaped; the policy in its head keeps a browser from fetching or running anything even so.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

from vllm_batchllm.page.svg import inline_svg

PAGE_NAME: Final = "index.html"
_MAX_SECTIONS_WITHOUT_CONTENTS: Final = 3


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown; the first column is text, the others stand to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture: an SVG document, its title, and what it shows in words."""

    title: str
    alt: str
    svg: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it. An empty line in `text` parts paragraphs."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: tuple[Drawing, ...] = ()

    @property
    def paragraphs(self) -> list[str]:
        """The parts of the text, without empty ones."""
        return [part for part in map(str.strip, self.text.split("\n\n")) if part]


@dataclass(frozen=True, slots=True)
class Page:
    """A report: what was found, by which command, where, and the details."""

    title: str
    summary: tuple[str, ...]
    command: str
    environment: Mapping[str, str]
    sections: tuple[Section, ...] = field(default=())


def check_folder(folder: Path) -> None:
    """Make `folder` and see that a page can be written into it, before hours are spent.

    Raises:
        OSError: it cannot; the error says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_page(page: Page, folder: Path) -> Path:
    """Write the page as `index.html`, replaced as a whole, and return its path.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a drawing is no SVG, or one that could act.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE_NAME
    partial = folder / f".{PAGE_NAME}.part"
    # A command line may hold bytes that are no UTF-8; they show as question marks.
    partial.write_bytes(render_page(page).encode("utf-8", errors="replace"))
    os.replace(partial, path)
    return path


def render_page(page: Page) -> str:
    """The page as HTML.

    Raises:
        ValueError: a drawing is no SVG, or one that could act.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    numbers = iter(range(1, 1 + sum(len(section.figures) for section in page.sections)))

    def inline(drawing: Drawing) -> Markup:
        return Markup(inline_svg(drawing.svg, drawing.alt, f"f{next(numbers)}-"))

    return environment.from_string(_resource("page.html.jinja")).render(
        page=page,
        style=Markup(_resource("page.css")),
        inline=inline,
        with_contents=len(page.sections) > _MAX_SECTIONS_WITHOUT_CONTENTS,
        with_run=bool(page.command or page.environment),
    )


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
