# SPDX-License-Identifier: Apache-2.0
"""Pictures are small, readable SVG, the same every time, with the figures that they were given."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_model import drawings

from vllm_batchllm.page.figures import occupancy, ratio_bars, saved_against_optimum, step_profile
from vllm_batchllm.page.icicle import GroupBox, forest_icicle
from vllm_batchllm.page.page import Drawing
from vllm_batchllm.page.palette import arm_colours
from vllm_batchllm.page.strips import thinned
from vllm_batchllm.page.svg import FAINT, INK, PAPER, clean


def texts(drawing: Drawing) -> list[str]:
    """What is written in a picture."""
    root = ET.fromstring(drawing.svg)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]


def test_a_picture_is_the_same_every_time() -> None:
    assert drawings() == drawings.__wrapped__()


@pytest.mark.parametrize(
    "name", ["<script>", "a&b", '"q"', "$x^2$", "日本", "\x00\x1b\ud800", "a\nb"], ids=ascii
)
def test_any_name_gives_readable_svg(name: str) -> None:
    for drawing in drawings(name):
        root = ET.fromstring(drawing.svg)
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
            "svg", "g", "defs", "path", "use", "text", "tspan", "clipPath", "rect", "title",
        }  # fmt: skip


@pytest.mark.parametrize("drawing", drawings(), ids=lambda drawing: drawing.title)
def test_a_picture_takes_colours_and_fonts_from_its_page(drawing: Drawing) -> None:
    svg = drawing.svg
    assert "currentColor" in svg
    assert not [ink for ink in (INK, FAINT, PAPER) if ink in svg]
    assert svg.count("font-family") == 1
    assert re.findall("https?:[^\"']*", svg) == ["http://www.w3.org/2000/svg"]


def test_names_and_figures_are_text_and_in_the_alternative() -> None:
    drawing = ratio_bars(["$a$ <b>"], {"stock": [(2.125, 1, 3)]}, "time")
    assert {"$a$ <b>", "2.12", "time", "stock"} <= set(texts(drawing))
    assert "stock $a$ <b>: 2.12 (1.00 to 3.00)" in drawing.alt


def test_the_best_possible_is_told_beside_what_was_saved() -> None:
    drawing = saved_against_optimum(["w"], {"stock": [-0.25], "batchllm": [0.7]}, [0.75])
    assert {"-25.0%", "70.0%", "possible"} <= set(texts(drawing))
    assert "possible w: 75.0%" in drawing.alt


@pytest.mark.parametrize(
    ("names", "series", "optimum"),
    [([], {}, []), (["a"], {"stock": [0.1, 0.2]}, [0.5]), (["a"], {"stock": [0.1]}, [])],
)
def test_lengths_that_do_not_fit_are_refused(
    names: list[str], series: dict[str, list[float]], optimum: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"names|no results"):
        saved_against_optimum(names, series, optimum)


def test_there_is_no_picture_of_nothing() -> None:
    for draw in (
        lambda: step_profile({}, "tokens"),
        lambda: step_profile({"stock": []}, "tokens"),
        lambda: occupancy({"stock": ()}),
        lambda: forest_icicle([]),
        lambda: ratio_bars([], {}, "time"),
    ):
        with pytest.raises(ValueError, match="there are no"):
            draw()


def test_fifty_thousand_steps_make_no_large_picture() -> None:
    rng = random.Random(0)
    series = {arm: [rng.randrange(2048) for _ in range(50_000)] for arm in ("stock", "batchllm")}
    drawing = step_profile(series, "tokens")
    assert len(drawing.svg) < 80_000
    assert "batchllm: 50,000 steps" in texts(drawing)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=3000), st.integers(2, 1000))
@settings(max_examples=50)
def test_thinning_keeps_the_sum_and_the_greatest(values: list[int], max_points: int) -> None:
    profile = thinned(values, max_points)
    assert (profile.edges[0], profile.edges[-1]) == (0, len(values))
    assert np.diff(profile.edges).min() >= 1
    assert float(profile.means @ np.diff(profile.edges)) == pytest.approx(sum(values))
    if profile.maxima is None:
        assert profile.means.tolist() == values
    else:
        assert profile.maxima.max() == max(values)
        assert (profile.maxima >= profile.means - 1e-9).all()
        assert len(profile.means) + len(profile.maxima) <= max_points < len(values)


def test_boxes_say_what_they_are_where_they_are_pointed_at() -> None:
    inner = GroupBox("be brief", 32, 4)
    drawing = forest_icicle([GroupBox("you are <b>", 64, 10, (inner,)), GroupBox("other", 16, 2)])
    titles = [element.text for element in ET.fromstring(drawing.svg).findall(".//{*}title")]
    assert titles == [
        "10 requests share tokens 0 to 64: you are <b>",
        "4 requests share tokens 64 to 96: be brief",
        "2 requests share tokens 0 to 16: other",
    ]
    assert "10 × 64" in "".join(texts(drawing))


def test_boxes_may_nest_at_any_depth() -> None:
    box = GroupBox("last", 1, 2)
    for _ in range(1500):
        box = GroupBox("one more", 1, 2, (box,))
    assert "requests" in forest_icicle([box]).svg


def test_arms_have_one_colour_each_in_every_picture() -> None:
    known = arm_colours(["stock", "sorted", "batchllm"])
    assert arm_colours(["batchllm", "x", "stock"]).items() >= {
        ("batchllm", known["batchllm"]), ("stock", known["stock"]),
    }  # fmt: skip
    many = arm_colours(["stock", "sorted", "batchllm", *map(str, range(7))])
    assert len(set(many.values())) == 10


@given(st.text(), st.integers(2, 80))
def test_clean_text_is_one_printable_line(text: str, max_chars: int) -> None:
    found = clean(text, max_chars)
    assert len(found) <= max_chars and (found.isprintable() or not found)
    found.encode("utf-8")
