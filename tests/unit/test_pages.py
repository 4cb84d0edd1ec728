# SPDX-License-Identifier: Apache-2.0
"""The README and the pages of docs/: what they link to is there, and tests that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_LINES = 155


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_test_that_a_feature_names_is_there() -> None:
    text = (ROOT / "docs" / "features.md").read_text()
    sources = {file.name: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}
    rows = [line for line in text.splitlines() if "| `test_" in line or "(`test_" in line]
    assert len(rows) > 20
    for row in rows:
        files = re.findall(r"`(test_\w+\.py)`", row)
        assert files and not set(files) - sources.keys(), row
        for name in re.findall(r"`(test_\w+)`", row):
            assert any(f"def {name}(" in sources[file] for file in files), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES
