# SPDX-License-Identifier: Apache-2.0
"""What docs/security.md promises of the code as it is written, read off its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_batchllm

PACKAGE = Path(vllm_batchllm.__file__).parent
UNSAFE_MODULES = {
    *("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"),
    *("jsonpickle", "msgpack", "msgspec", "ctypes", "runpy", "code", "xmlrpc", "socket", "http"),
}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "unsafe_load"}
FILE_CALLS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rename"),
    *("rmtree", "remove_file", "touch", "savefig", "save_file", "fdopen", "symlink_to", "replace"),
}
COMMANDS = (
    "plan/",
    "bench/",
    "page/",
    "simulate/",
    "calibrate/",
    "release/",
    "doctor/",
    "input/",
    "jobs/",
    "measure/",
    "workloads/",
    "cli.py",
)
"""What runs as a command of its own, on files that its user names."""


AT_START = {
    "attention/speed_records.py": ["file.read_text()", "file.write_text()", "place.mkdir()"]
}
"""Files of the machine's own: read while an engine starts; written by the benchmark that makes them, never by an engine."""

BATCH_API = {"batch_api/contents.py", "batch_api/results.py"}
"""What has files below --batch-dir: under ids that the server has drawn (test_batch_api_files.py)."""


def calls(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Name of what is called, what it is looked up on, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                yield function.id, "", node.lineno
            elif isinstance(function, ast.Attribute):
                yield function.attr, ast.unparse(function.value), node.lineno


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0], node.lineno


def unsafe_places(source: str) -> list[str]:
    """Imports and calls that could run or rebuild what somebody else wrote."""
    tree = ast.parse(source)
    found = [f"{line}: import {name}" for name, line in imports(tree) if name in UNSAFE_MODULES]
    for name, owner, line in calls(tree):
        is_re = owner == "re"
        if (name in UNSAFE_CALLS and not is_re) or (name == "load" and owner in ("torch", "np")):
            found.append(f"{line}: {owner}.{name}()")
    return found


def file_places(source: str) -> list[str]:
    """Calls that open, make or remove files; those on the gate of admissions are none."""
    found = []
    for name, owner, line in calls(ast.parse(source)):
        is_on_a_file = name != "replace" or owner == "os"
        is_gate = name == "open" and owner.endswith("manager")
        if name in FILE_CALLS and is_on_a_file and not is_gate:
            found.append(f"{line}: {owner}.{name}()")
    return found


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 50
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_but_json_is_deserialised_and_nothing_is_evaluated(path) -> None:
    assert not unsafe_places(path.read_text())


def test_code_that_runs_in_a_server_touches_no_file() -> None:
    serving = [p for p in modules() if not p.relative_to(PACKAGE).as_posix().startswith(COMMANDS)]
    assert any(p.name == "scheduler.py" for p in serving)
    places = {str(p.relative_to(PACKAGE)): file_places(p.read_text()) for p in serving}
    for name, allowed in AT_START.items():
        assert sorted(found.partition(": ")[2] for found in places.pop(name)) == allowed
    assert all(places.pop(name) for name in BATCH_API)
    assert not {name: found for name, found in places.items() if found}
    commands = tuple(f"vllm_batchllm.{name.removesuffix('/')}" for name in COMMANDS[:3])
    for path in serving:
        nodes = ast.walk(ast.parse(path.read_text()))
        used = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not [name for name in used if name.startswith(commands)], path


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from yaml import safe_load", "eval(x)", "os.system(x)", "torch.load(x)"],
)
def test_unsafe_code_would_be_seen(source) -> None:
    assert unsafe_places(source)


@pytest.mark.parametrize(
    "source", ["open(name)", "Path(name).read_text()", "path.open()", "os.replace(a, b)"]
)
def test_a_file_would_be_seen(source) -> None:
    assert file_places(source)
