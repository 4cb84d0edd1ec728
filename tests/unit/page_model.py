# SPDX-License-Identifier: Apache-2.0
"""A page with everything on it, and how to read pages back in tests."""

from __future__ import annotations

import re
from functools import lru_cache
from html.parser import HTMLParser

from vllm_batchllm.page.figures import occupancy, ratio_bars, saved_against_optimum, step_profile
from vllm_batchllm.page.icicle import GroupBox, forest_icicle
from vllm_batchllm.page.page import Drawing, Page, Section, Table

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


@lru_cache(maxsize=4)
def drawings(name: str = "one") -> tuple[Drawing, ...]:
    """One of every kind; `name` stands wherever a name can."""
    return (
        ratio_bars([name, "two"], {"stock": [(2, 1, 3), (1, 1, 1)], name: [None, (1, 0.5, 2)]}, name),
        saved_against_optimum([name, "two"], {"stock": [0.2, -0.1], name: [0.7, None]}, [0.7, 0.5]),
        step_profile({"stock": [3, 100, 2], name: [7]}, name),
        occupancy({"stock": [0.3, 1.0], name: []}),
        forest_icicle([GroupBox(name, 64, 12, (GroupBox(f"{name} below", 32, 7),))]),
    )  # fmt: skip


def page(name: str = "one") -> Page:
    """A page with every part; `name` stands wherever users' texts can."""
    table = Table(("arm", name), (("stock", "1.25"), (name, "2,048")), caption=name)
    return Page(
        title=f"Report of {name}",
        summary=(f"{name} is fast", "second line"),
        command=f"vllm-batchllm bench --model {name}",
        environment={"CPU": name, name: "1.0"},
        sections=(
            Section(name, f"first {name}\n\nsecond", table, drawings(name)),
            *(Section(f"section {number}", "text", table) for number in range(3)),
        ),
    )


class Reader(HTMLParser):
    """Collects the elements of a page, and the text of those that are asked for."""

    def __init__(self, text: str, *, inside: str = "") -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside, self._depth = inside, 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == self._inside:
            self._depth += 1
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.texts[-1] += data
