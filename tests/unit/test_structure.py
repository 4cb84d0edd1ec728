# SPDX-License-Identifier: Apache-2.0
"""docs/structure.md tells what the code is: its rooms are the contract's, its files are there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vllm_batchllm

ROOT = Path(__file__).parents[2]
PACKAGE = Path(vllm_batchllm.__file__).parent
PAGE = (ROOT / "docs" / "structure.md").read_text()
MAX_LINES_OF_THE_WAY = 80


def contract() -> list[str]:
    """The rooms in the order of the contract, those that are not built yet in brackets."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [each["layers"] for each in options["contracts"] if each["id"] == "rooms"]
    return [room.strip() for layer in layers for room in layer.split("|")]


def test_the_rooms_of_the_page_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\(to come\))?", PAGE, re.MULTILINE)
    told = [f"({room})" if to_come else room for room, to_come in rows]
    assert told == contract()


def test_a_room_is_in_brackets_until_it_is_built() -> None:
    for room in contract():
        name = room.strip("()")
        is_built = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
        assert is_built == (name == room), f"{name}: take the brackets off, or build it"


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))
    assert len(named) > 20
    assert not [name for name in named if not (PACKAGE / name).is_file()]


def test_the_way_of_a_request_is_short() -> None:
    way = PAGE.partition("## The way of one request")[2].partition("\n## ")[0]
    assert 10 < len(way.splitlines()) <= MAX_LINES_OF_THE_WAY


def test_the_contract_fails_by_name_where_an_arrow_goes_up(tmp_path: Path) -> None:
    """A copy of the package in which the forest asks the scheduler."""
    for name in ("vllm_batchllm", "pyproject.toml"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path], check=True)
    with (tmp_path / "vllm_batchllm" / "prefix" / "node.py").open("a") as file:
        file.write("\nfrom vllm_batchllm.scheduler import scheduler\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "vllm_batchllm.prefix is not allowed to import vllm_batchllm.scheduler" in done.stdout
    assert "vllm_batchllm.prefix.node -> vllm_batchllm.scheduler.scheduler" in done.stdout


@pytest.mark.parametrize("name", vllm_batchllm.__all__)
def test_the_short_paths_lead_somewhere(name: str) -> None:
    assert getattr(importlib.import_module("vllm_batchllm"), name)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"vllm", "torch", "numpy", "pydantic", "importlib.metadata"}
    code = "import sys, vllm_batchllm; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())
