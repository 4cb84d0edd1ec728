# SPDX-License-Identifier: Apache-2.0
"""Finds the source of vLLM's symbols without importing it: installed, or inside an archive."""

from __future__ import annotations

import ast
import importlib.util
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Reader = Callable[[str], str | None]
"""The text of a file by its path, such as ``vllm/config/cache.py``; None where there is none."""


@dataclass(frozen=True)
class Place:
    """Where a symbol is defined, and how."""

    file: str
    node: Definition

    def __str__(self) -> str:
        return f"{self.file}:{self.node.lineno}"


class SourceError(LookupError):
    """A symbol is not where its path says."""


def installed_reader() -> Reader:
    """Reads the vLLM that this process would import.

    Raises:
        SourceError: none is installed.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SourceError("vLLM is not installed")
    root = Path(spec.origin).parents[1]

    def read(path: str) -> str | None:
        return (root / path).read_text() if (root / path).is_file() else None

    return read


def archive_reader(archive: Path) -> Reader:
    """Reads the Python files of vLLM in a source archive, at once."""
    texts = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition("/")
            stream = tar.extractfile(member) if _is_python(path) else None
            if stream is not None:
                texts[path] = stream.read().decode()
    return texts.get


def _is_python(path: str) -> bool:
    return path.startswith("vllm/") and path.endswith(".py")


class Sources:
    """The modules of one version of vLLM, each parsed once."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._parsed: dict[str, tuple[str, ast.Module]] = {}

    def find(self, path: str) -> Place:
        """Where ``module:name.name`` is defined, through imports and base classes.

        Raises:
            SourceError: it is not there; the text says which part of it.
        """
        module, _, names = path.partition(":")
        first, *rest = names.split(".")
        home, place = self._in_module(module, first)
        for name in rest:
            home, place = self._in_class(home, place, name)
        return place

    def _module(self, name: str) -> tuple[str, ast.Module]:
        if name not in self._parsed:
            stem = name.replace(".", "/")
            for file in (f"{stem}.py", f"{stem}/__init__.py"):
                text = self._read(file)
                if text is not None:
                    self._parsed[name] = file, ast.parse(text)
                    break
            else:
                raise SourceError(f"there is no module {name}")
        return self._parsed[name]

    def _in_module(self, module: str, name: str) -> tuple[str, Place]:
        """The module that defines ``name``, and its definition there."""
        file, tree = self._module(module)
        for node in _statements(tree.body):
            if isinstance(node, Definition) and node.name == name:
                return module, Place(file, node)
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if (alias.asname or alias.name) == name:
                    origin = _origin(module, file.endswith("__init__.py"), node)
                    try:
                        return self._in_module(origin, alias.name)
                    except SourceError:
                        continue  # imported where it exists, and defined here where it does not
        raise SourceError(f"{module} defines no {name}")

    def _in_class(self, module: str, owner: Place, name: str) -> tuple[str, Place]:
        """The definition of ``name`` in a class, or in the first of its bases that has it."""
        if not isinstance(owner.node, ast.ClassDef):
            raise SourceError(f"{owner} is no class")
        for node in _statements(owner.node.body):
            if isinstance(node, Definition) and node.name == name:
                return module, Place(owner.file, node)
        for base in owner.node.bases:
            try:
                return self._in_class(*self._in_module(module, ast.unparse(base)), name)
            except SourceError:
                continue
        raise SourceError(f"{owner.node.name} in {module} defines no {name}")


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block, and those under its ``if`` and ``try``; later definitions win."""
    for node in reversed(list(body)):
        if isinstance(node, ast.If):
            yield from _statements([*node.orelse, *node.body])
        elif isinstance(node, ast.Try):
            handled = [each for handler in node.handlers for each in handler.body]
            yield from _statements([*handled, *node.body])
        else:
            yield node


def _origin(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    """The absolute name of the module that ``node`` imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])
