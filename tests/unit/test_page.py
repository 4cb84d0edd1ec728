# SPDX-License-Identifier: Apache-2.0
"""The page shows everything it is given, runs nothing, fetches nothing, and is one file."""

from __future__ import annotations

import os
import re
import tomllib
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_model import SVG, Reader, drawings, page

from vllm_batchllm.page.page import (
    Drawing,
    Page,
    Section,
    Table,
    check_folder,
    render_page,
    write_page,
)

SCRIPT = "<script>alert('x')</script>"
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1)


def test_every_part_of_a_page_is_shown() -> None:
    text = render_page(page())
    assert "<h1>Report of one</h1>" in text
    assert Reader(text, inside="li").texts[:2] == ["one is fast", "second line"]
    assert Reader(text, inside="code").texts == ["vllm-batchllm bench --model one"]
    assert Reader(text, inside="h2").texts == [
        "one", "section 0", "section 1", "section 2", "How it was made",
    ]  # fmt: skip
    assert Reader(text, inside="figcaption").texts == [item.title for item in drawings()]
    assert {"CPU", "one", "1.0"} <= {
        *Reader(text, inside="th").texts,
        *Reader(text, inside="td").texts,
    }


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5))
@settings(max_examples=30)
def test_every_cell_of_a_table_is_shown_as_it_is(rows: list[tuple[str, str, str]]) -> None:
    table = Table(("a", "b", "c"), tuple(rows))
    text = render_page(Page("t", (), "", {}, (Section("s", table=table),)))
    names, values = Reader(text, inside="th").texts[3:], Reader(text, inside="td").texts
    assert names == [row[0] for row in rows]
    assert values == [cell for row in rows for cell in row[1:]]


def test_what_users_wrote_is_never_markup() -> None:
    text = render_page(page(SCRIPT))
    plain = [tag for tag, _ in Reader(render_page(page())).tags]
    assert [tag for tag, _ in Reader(text).tags] == plain
    assert "script" not in plain
    for inside in ("title", "h1", "h2", "li", "p", "caption", "th", "td", "code"):
        assert any(SCRIPT in found for found in Reader(text, inside=inside).texts), inside


def test_quotes_do_not_end_an_attribute() -> None:
    evil = '" onmouseover="alert(1)'
    for tag, attributes in Reader(render_page(page(evil))).tags:
        assert not [name for name in attributes if name.startswith("on")], tag


def test_nothing_is_fetched_and_nothing_is_run() -> None:
    text = render_page(page())
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    assert "http:" not in without_namespaces and "https:" not in without_namespaces
    assert not re.search(r"@import|url\((?!#)", text)
    for tag, attributes in Reader(text).tags:
        assert tag not in {"script", "iframe", "object", "embed", "img"}
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_ids_are_unique_and_references_have_targets() -> None:
    text = render_page(Page("t", (), "c", {}, (Section("s", figures=drawings() * 2),)))
    found = Reader(text).tags
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", text))
    wanted |= {str(a["href"])[1:] for _, a in found if str(a.get("href", "")).startswith("#")}
    assert wanted <= set(ids)


def test_pictures_are_named_for_those_who_do_not_see_them() -> None:
    for picture, drawing in zip(SVG.findall(render_page(page())), drawings(), strict=True):
        root = ET.fromstring(picture)
        assert (root.get("role"), root.get("aria-label")) == ("img", drawing.alt)


@pytest.mark.parametrize("count", [3, 4])
def test_contents_from_four_sections_on(count: int) -> None:
    sections = tuple(Section(f"s{number}") for number in range(count))
    assert ("<nav" in render_page(Page("t", (), "", {}, sections))) == (count > 3)


def test_an_empty_page_is_a_page() -> None:
    text = render_page(Page("t", (), "", {}))
    assert "How it was made" not in text and "<h1>t</h1>" in text


@pytest.mark.parametrize(
    "svg",
    [
        "no xml",
        "<html/>",
        f'<svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><g onclick="x()"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><use href="file:///etc/passwd"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><g style="fill: url(//host/x)"/></svg>',
    ],
)
def test_a_drawing_that_could_act_is_refused(svg: str) -> None:
    with pytest.raises(ValueError, match="picture"):
        render_page(Page("t", (), "", {}, (Section("s", figures=(Drawing("d", "a", svg),)),)))


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    first = write_page(page("first"), folder)
    assert first == write_page(page("second"), folder) == folder / "index.html"
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    assert "Report of second" in first.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_drawn_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_page(page(), tmp_path)
    broken = Page("t", (), "", {}, (Section("s", figures=(Drawing("d", "a", "x"),)),))
    with pytest.raises(ValueError):
        write_page(broken, tmp_path)
    assert "Report of one" in path.read_text(encoding="utf-8")


def test_a_command_that_is_no_utf_8_does_not_stop_the_page(tmp_path: Path) -> None:
    command = os.fsdecode(b"bench --model \xff")
    path = write_page(Page("t", (), command, {}), tmp_path)
    assert "bench --model ?" in path.read_text(encoding="utf-8")


def test_a_folder_is_tried_before_it_is_needed(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_folder(tmp_path / "file" / "below")


def test_template_and_styles_are_installed_with_the_package() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["package-data"]["vllm_batchllm.page"]
    files = {path.name for path in (root / "vllm_batchllm" / "page").iterdir() if path.is_file()}
    assert {name for name in files if not name.endswith(".py")} == set(listed)


def test_what_is_wider_than_the_window_says_that_it_scrolls() -> None:
    style = resources.files("vllm_batchllm.page").joinpath("page.css").read_text(encoding="utf-8")
    (rule,) = re.findall(r"^\.scroll \{(.*?)^\}", style, re.MULTILINE | re.DOTALL)
    assert "overflow-x: auto" in rule and "local" in rule, "a shadow where there is more"
    (narrow,) = re.findall(
        r"@media \(max-width: 45\.5rem\) \{(.*?)^\}", style, re.MULTILINE | re.DOTALL
    )
    assert "scroll sideways" in narrow
    least_rem = float(re.findall(r"min-width: ([\d.]+)rem", style)[0])
    assert least_rem < 45.5, "said wherever a picture is wider than its window"
