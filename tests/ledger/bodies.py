# SPDX-License-Identifier: Apache-2.0
"""Digests of the bodies that the ledger's symbols have in one version of vLLM.

A digest is of what a body does: not of where it stands, nor of comments, docstrings and layout. Of
a class it covers what a subclass meets (bases, fields, ``__init__``, the signatures of the other
methods); a method whose body matters has an entry of its own.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from archive import Release
from sources import Definition, SourceError, Sources
from vllm_symbol import VLLMSymbol

RECORDED = Path(__file__).resolve().parent / "digests"
GONE = "gone"
"""In place of file and line of a symbol that is not there."""


@dataclass(frozen=True)
class Body:
    """One symbol's body in one version: where it stands (``file:line``) and its SHA-256."""

    at: str
    sha256: str

    @property
    def file(self) -> str:
        """The file alone."""
        return self.at.partition(":")[0]


def bodies_of(symbols: Iterable[VLLMSymbol], sources: Sources) -> dict[str, Body]:
    """The bodies of all symbols, by path; those that are not there are ``GONE``."""
    return {symbol.path: _body_of(symbol, sources) for symbol in symbols}


def _body_of(symbol: VLLMSymbol, sources: Sources) -> Body:
    try:
        place = sources.find(symbol.source or symbol.path)
    except SourceError:
        return Body(GONE, "")
    return Body(str(place), digest_of(place.node))


def path_of(release: Release) -> Path:
    """Where the bodies of a minor version are recorded."""
    return RECORDED / f"{release.minor}.json"


def load(release: Release) -> dict[str, Body]:
    """The recorded bodies of a version; empty where it has no record."""
    if not path_of(release).is_file():
        return {}
    content = json.loads(path_of(release).read_text())
    if content.pop("vllm") != release.version:
        return {}
    return {path: Body(*values) for path, values in content.items()}


def save(release: Release, bodies: dict[str, Body]) -> None:
    """Record the bodies of a version, one a line."""
    lines = [f'"vllm": "{release.version}"']
    lines += [
        f"{json.dumps(path)}: {json.dumps([body.at, body.sha256])}"
        for path, body in sorted(bodies.items())
    ]
    path_of(release).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def digest_of(node: Definition) -> str:
    """SHA-256 of what ``node`` defines; the same under every supported Python."""
    node = copy.deepcopy(node)
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                member.body = member.body if member.name == "__init__" else []
    for each in ast.walk(node):
        if isinstance(each, Definition) and each.body and _is_docstring(each.body[0]):
            each.body = each.body[1:]
    return hashlib.sha256(repr(_plain(node)).encode()).hexdigest()


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _plain(value: object) -> object:
    """A syntax tree as tuples, without what is empty: Pythons differ in the fields they know."""
    if isinstance(value, ast.AST):
        fields = ((name, _plain(each)) for name, each in ast.iter_fields(value))
        kept = tuple((name, each) for name, each in fields if each not in (None, ()))
        return (type(value).__name__, kept)
    if isinstance(value, list):
        return tuple(_plain(each) for each in value)
    return None if value is None else f"{type(value).__name__} {value!r}"
