# SPDX-License-Identifier: Apache-2.0
"""Everything of vLLM that we rely on is where we think it is, and what we think it is."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import archive
import bodies
import pytest
from entries_attributes import ATTRIBUTES
from fake_engine import make_request, make_scheduler, make_vllm_config, model_folder
from ledger import LEDGER, SYMBOLS
from packaging.version import Version
from sources import Sources, installed_reader
from vllm.v1.core.sched.scheduler import Scheduler
from vllm_symbol import Entry, VLLMAttribute, VLLMSymbol, live

import vllm_batchllm
from vllm_batchllm.compat import version as vllm_version

PACKAGE = Path(vllm_batchllm.__file__).parent
VERSION = vllm_version.installed_vllm_version() or ""
OVERRIDDEN = {"vllm.v1.core.sched.scheduler:Scheduler", "vllm.v1.core.block_pool:BlockPool"}
OVERRIDDEN |= {"vllm:LLM", "vllm.v1.core.kv_cache_manager:KVCacheManager"}
OVERRIDDEN |= {"vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue"}
"""Bases of ours, at least, whose methods we override one by one."""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """vLLM's own objects, as the ring builds them; no class of ours among them."""
    config = make_vllm_config(model_folder(tmp_path_factory.mktemp("llama")))
    scheduler = make_scheduler(Scheduler, config)
    pool = scheduler.kv_cache_manager.block_pool
    return SimpleNamespace(
        scheduler=scheduler, request=make_request("a", range(40)), block=pool.blocks[1]
    )


@pytest.mark.parametrize(
    "entry", [e for e in SYMBOLS if e.applies_to(VERSION)], ids=lambda entry: entry.path
)
def test_each_symbol_is_there_with_the_parameters_we_use(entry: VLLMSymbol) -> None:
    missing = set(entry.parameters) - set(_signature(live(entry.path)))
    assert not missing, f"{entry.path} lost {missing}"


def _signature(target: Any) -> Any:
    """The parameters of a callable; of a symbol that is none, nothing is asked."""
    return inspect.signature(target).parameters if callable(target) else ()


@pytest.mark.parametrize(
    "entry",
    [e for e in ATTRIBUTES if e.applies_to(VERSION)],
    ids=lambda entry: f"{entry.path}: {entry.type}",
)
def test_each_attribute_has_the_type_we_use(ring: SimpleNamespace, entry: VLLMAttribute) -> None:
    found = functools.reduce(getattr, entry.path.split("."), ring)
    assert isinstance(found, live(entry.type)), f"{entry.path} is a {type(found).__name__}"


@pytest.mark.parametrize("entry", LEDGER, ids=lambda entry: entry.path)
def test_each_entry_says_why_how_and_until_when(entry: Entry) -> None:
    assert entry.why and entry.how and entry.until


def test_nothing_outlives_the_version_that_needed_it() -> None:
    """What only an older vLLM needs goes, here and where the entry's `how` names it, as soon as
    that version is no longer supported."""
    oldest = Version(vllm_version.SUPPORTED_MIN)
    outlived = {e.path: e.how for e in LEDGER if e.below and Version(e.below) <= oldest}
    assert not outlived, f"nothing supported needs these, nor the code for them: {outlived}"
    settled = {e.path for e in LEDGER if e.since and Version(e.since) <= oldest}
    assert not settled, f"every supported version has these: take `since` off {settled}"


@pytest.mark.parametrize(
    ("entry", "applies"),
    [
        ({"below": "0.33"}, [True, True, False, False]),
        ({"since": "0.33"}, [False, False, True, True]),
        ({}, [True, True, True, True]),
    ],
)
def test_an_entry_applies_below_one_version_and_since_another(
    entry: dict[str, str], applies: list[bool]
) -> None:
    versions = ["0.32.0+cpu", "0.32.7.post1", "0.33.0+cpu", "0.34.0"]
    tried = Entry(why="-", how="-", until="-", **entry)
    assert [tried.applies_to(version) for version in versions] == applies


def _subclasses() -> Iterator[tuple[Path, ast.ClassDef, str]]:
    """Every class of ours with a base imported from vLLM: file, class, base as module:name."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        imported = {
            alias.asname or alias.name: f"{node.module}:{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "vllm"
            for alias in node.names
        }
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            for base in {ast.unparse(each) for each in node.bases} & imported.keys():
                yield file, node, imported[base]


def test_every_vllm_method_that_we_override_is_in_the_ledger() -> None:
    known = {entry.path.rpartition(".")[2] for entry in SYMBOLS}
    met = set()
    for file, ours, base in _subclasses():
        stock = live(base)
        if inspect.isabstract(stock):
            continue  # its methods are asked for by name: one that is missing cannot be built
        met.add(base)
        for method in (n for n in ours.body if isinstance(n, ast.FunctionDef)):
            if hasattr(stock, method.name) and not method.name.startswith("__"):
                assert method.name in known, f"{file.name}: {ours.name}.{method.name}"
    assert met >= OVERRIDDEN, "a base is found no more: look at how it is imported"


def test_the_bodies_of_the_installed_vllm_are_those_recorded() -> None:
    recorded = bodies.load(archive.installed())
    found = bodies.bodies_of(SYMBOLS, Sources(installed_reader()))
    differing = {path for path in found if found[path] != recorded.get(path)}
    assert not differing, "renew the record: tests/ledger/drift.py --record VERSION"
    assert recorded.keys() == found.keys()


@pytest.mark.parametrize("version", archive.PINNED)
def test_every_supported_version_has_a_record_of_all_it_relies_on(version: str) -> None:
    recorded = bodies.load(archive.pinned(version))
    relied_on = {entry.path for entry in SYMBOLS if entry.applies_to(version)}
    assert {path for path, body in recorded.items() if body.at != bodies.GONE} >= relied_on
