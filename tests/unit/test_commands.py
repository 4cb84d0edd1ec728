# SPDX-License-Identifier: Apache-2.0
"""All commands: help and refusals do not wait for vLLM, interrupts end alike, options mean the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ("plan", "bench", "simulate", "calibrate", "run", "status", "arrange", "release")
MOST_CPU_S = 1.5
"""Generous: 0.4 s on a quiet machine."""

_CODE = """
import os, sys
from vllm_batchllm.cli import app
try:
    app(sys.argv[1:], prog_name="vllm-batchllm")
except SystemExit as end:
    code = end.code
spent = os.times()
heavy = sorted({"vllm", "torch", "transformers"} & set(sys.modules))
print("\\nEND", code, f"{spent.user + spent.system:.2f}", *heavy, file=sys.stderr)
"""


def ended(*arguments: str) -> tuple[int, float, list[str], str]:
    """Exit code, processor seconds, what heavy was loaded, and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *arguments], capture_output=True, text=True, check=True
    )
    said, _, end = done.stderr.rpartition("\nEND ")
    code, cpu_s, *heavy = end.split()
    return int(code), float(cpu_s), heavy, said


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_there_at_once(command: tuple[str, ...]) -> None:
    code, cpu_s, heavy, _ = ended(*command, "--help")
    assert (code, heavy) == (0, [])
    assert cpu_s < MOST_CPU_S


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("simulate industry nonsense", "unknown workload 'nonsense'"),
        ("simulate industry --device nonsense", "unknown device 'nonsense'"),
        ("simulate industry --model nonsense", "unknown model 'nonsense'"),
        ("simulate industry -p nonsense", "unknown policy 'nonsense'"),
        ("simulate industry --replicas 2 --placement nonsense", "unknown placement 'nonsense'"),
        ("simulate industry --option nonsense=1", "unknown batchllm option 'nonsense'"),
        ("simulate nonsense.jsonl", "nonsense.jsonl cannot be read"),
        ("bench industry nonsense", "unknown workload 'nonsense'"),
        ("bench industry --arm nonsense", "unknown arm 'nonsense'"),
        ("bench industry --order nonsense", "'nonsense' is not allowed"),
        ("bench industry --option nonsense=1", "unknown batchllm option 'nonsense'"),
        ("bench industry --model /nonsense", "the model folder /nonsense does not exist"),
        ("calibrate --model /nonsense", "the model folder /nonsense does not exist"),
        ("plan pyproject.toml --model /nonsense", "the model folder /nonsense does not exist"),
    ],
)
def test_names_are_refused_at_once(arguments: str, words: str) -> None:
    code, cpu_s, heavy, said = ended(*arguments.split())
    assert (code, heavy) == (2, [])
    assert words in said and "Traceback" not in said
    assert cpu_s < MOST_CPU_S
