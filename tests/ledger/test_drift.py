# SPDX-License-Identifier: Apache-2.0
"""What counts as a change of a body, where bodies are found, and what the command says of it."""

from __future__ import annotations

import ast
import sys

import archive
import drift
import pytest
from bodies import GONE, Body, bodies_of, digest_of
from sources import SourceError, Sources
from vllm_symbol import VLLMSymbol

PACKAGE = {
    "vllm/a.py": "from .b import Base as Root\nfrom vllm.c import tool\nclass Leaf(Root):\n  x = 1\n",
    "vllm/b/__init__.py": "from .inner import Base\n",
    "vllm/b/inner.py": "class Base:\n  def run(self): return 1\n  async def stop(self): pass\n",
    "vllm/c.py": "try:\n  from vllm.d import tool\nexcept ImportError:\n  def tool(): return 0\n",
}


def symbol(path: str, **more: str) -> VLLMSymbol:
    return VLLMSymbol(path, why="-", how="called", until="-", **more)  # type: ignore[arg-type]


def digest(text: str) -> str:
    return digest_of(ast.parse(text).body[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("vllm.b:Base", "vllm/b/inner.py:1"),
        ("vllm.a:Root", "vllm/b/inner.py:1"),
        ("vllm.a:Leaf", "vllm/a.py:3"),
        ("vllm.a:Leaf.run", "vllm/b/inner.py:2"),
        ("vllm.a:Leaf.stop", "vllm/b/inner.py:3"),
        ("vllm.a:tool", "vllm/c.py:4"),
    ],
)
def test_symbols_are_found_through_imports_and_bases(path: str, place: str) -> None:
    assert str(Sources(PACKAGE.get).find(path)) == place


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("vllm.z:A", "no module vllm.z"),
        ("vllm.a:A", "vllm.a defines no A"),
        ("vllm.a:Leaf.walk", "Leaf in vllm.a defines no walk"),
        ("vllm.b:Base.run.x", r"inner.py:2 is no class"),
    ],
)
def test_what_is_missing_is_named(path: str, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        Sources(PACKAGE.get).find(path)
    assert bodies_of([symbol(path)], Sources(PACKAGE.get)) == {path: Body(GONE, "")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(a):\n  return a", '\n\ndef f(a):\n  "doc"  # said\n  return (a)'),
        ("class A:\n  def f(self): return 1", "class A:\n  'doc'\n  def f(self):\n    return 2"),
    ],
)
def test_layout_docstrings_and_other_methods_are_no_change(one: str, other: str) -> None:
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(a): return a", "def f(a): return -a"),
        ("def f(a): return 1", "def f(a): return True"),
        ("def f(a=None): return 1", "def f(a=...): return 1"),
        ("def f(a): return 1", "async def f(a): return 1"),
        ("def f(a: int): return 1", "def f(a: str): return 1"),
        (
            "class A:\n  def __init__(self): self.x = set()",
            "class A:\n  def __init__(self): self.x = {}",
        ),
        ("class A:\n  def f(self): return 1", "class A:\n  def f(self, more): return 1"),
        ("class A:\n  def f(self): return 1", "class A(B):\n  def f(self): return 1"),
        ("class A:\n  x: int = 1", "class A:\n  x: int = 2"),
    ],
)
def test_what_a_body_does_is_a_change(one: str, other: str) -> None:
    assert digest(one) != digest(other)


def test_a_digest_is_the_same_under_every_python() -> None:
    """Later ones add fields to their syntax trees; the digest was found with 3.11."""
    text = "def f(a, *b, c=1, **d) -> str:\n  x: int = a[1:2]\n  return f'{x!r:>9} {d}' or None"
    assert digest(text) == "2c230ec8c70c795a507977637a32f52e7025650d45e9981bbff27a5236820fef"


def test_the_report_names_each_verdict_once_the_gravest_first() -> None:
    old = {"a": Body("x.py:1", "1"), "b": Body("x.py:9", "2"), "c": Body("x.py:20", "3")}
    old |= {"d": Body("x.py:30", "4"), "e": Body(GONE, ""), "f": Body(GONE, "")}
    new = {"a": Body("x.py:5", "1"), "b": Body("x.py:9", "8"), "c": Body("y.py:20", "3")}
    new |= {"d": Body(GONE, ""), "e": Body("y.py:1", "5"), "f": Body(GONE, "")}
    lines = drift.report(old, new, [symbol(path) for path in old])
    assert [line.split("\n")[0].split() for line in lines] == [
        ["gone", "d"],
        ["changed", "b"],
        ["moved", "c"],
        ["new", "e"],
    ]
    assert lines[1].endswith("x.py:9; called")
    assert lines[2].endswith("x.py:20 -> y.py:20; called")


def test_the_command_names_what_0_33_has_changed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["drift.py", "0.32.0", "0.33.0"])
    assert drift.main() == 0
    said = capsys.readouterr().out
    assert "changed  vllm.v1.core.sched.scheduler:Scheduler.schedule\n" in said
    assert "vllm.v1.core.sched.scheduler:Scheduler.add_request\n" not in said


def test_a_version_that_is_not_pinned_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["drift.py", min(archive.PINNED), "0.99.0"])
    assert drift.main() == 1
    assert "pinned for vLLM 0.99.0" in capsys.readouterr().err
