# SPDX-License-Identifier: Apache-2.0
"""docs/recipes.md: what it tells people to type can be read by shells and Python, and its options are there."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from vllm.benchmarks.serve import add_cli_args as bench_serve_args
from vllm.benchmarks.throughput import add_cli_args as bench_throughput_args
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.launchers.run_batch import make_arg_parser as run_batch_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_moved import serve_parser

import vllm_batchllm
from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.plugin import registration

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def snippets(language: str) -> list[str]:
    return [text for each, text in SNIPPETS if each == language]


def commands() -> list[str]:
    """One for each prompt of the page; a line that does not begin with one goes on with the last."""
    found: list[str] = []
    for text in snippets("console"):
        found += [each.strip() for each in re.split(r"^\$ ", text, flags=re.MULTILINE) if each]
    return found


def bench(add_cli_args: Callable[[argparse.ArgumentParser], object]) -> argparse.ArgumentParser:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    return parser


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "vllm serve": lambda: serve_parser(FlexibleArgumentParser()),
    "vllm run-batch": lambda: run_batch_parser(FlexibleArgumentParser()),
    "vllm bench throughput": lambda: bench(bench_throughput_args),
    "vllm bench serve": lambda: bench(bench_serve_args),
}
"""Whose options are looked up. Those of other tools are theirs, and their versions stand on the page."""


def test_the_page_has_all_kinds_of_snippets() -> None:
    assert {language for language, _ in SNIPPETS} == {"console", "python", "yaml"}
    assert all(any(name in command for command in commands()) for name in PARSERS)


@pytest.mark.parametrize("command", commands())
def test_a_shell_can_read_it(command: str) -> None:
    ended = subprocess.run(
        ["bash", "-n"], input=command, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0 and not ended.stderr, ended.stderr


@pytest.mark.parametrize("text", snippets("python"))
def test_python_can_read_it(text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize("text", snippets("yaml"))
def test_yaml_can_read_it(text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("name", PARSERS)
def test_options_of_vllms_commands_are_there(name: str) -> None:
    registration.register()
    known = PARSERS[name]()._option_string_actions
    texts = [command for command in commands() if name in command]
    if "bench" in name:  # they take theirs from variables, too
        texts += [c for c in commands() if c.startswith("LOAD=")]
    if name in ("vllm serve", "vllm bench throughput"):
        texts += [c for c in commands() if c.startswith("SIZES=")]
    options = {option for text in texts for option in re.findall(r"(?<!\S)--[a-z-]+", text)}
    options |= {f"--{o}" for text in texts for o in re.findall(r'="--([a-z-]+)', text)}
    assert options and not options - set(known)


def test_the_path_for_scheduler_cls_leads_to_ours() -> None:
    assert f'scheduler_cls="{BATCHLLM_SCHEDULER}"' in PAGE
    assert callable(getattr(vllm_batchllm, BATCHLLM_SCHEDULER.rpartition(".")[2]))
    assert "scheduler_cls" in EngineArgs.__dataclass_fields__


def test_what_the_log_says_is_what_the_page_says() -> None:
    root = Path(vllm_batchllm.__file__).parent
    told = (root / "plugin" / "registration.py").read_text()
    assert "Scheduler: batchllm, chosen by %s" in told
    assert "Scheduler: batchllm, chosen by VLLM_BATCHLLM" in PAGE
    assert "Scheduler: batchllm (%s)" in (root / "scheduler" / "scheduler.py").read_text()
