# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm doctor` for real, in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = "from vllm_batchllm.cli import main; main()"


def doctor(*arguments: str) -> dict[str, Any]:
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, "doctor", "--json", *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_quick() -> None:
    found = doctor("--quick")
    assert found["well"]
    assert {"vLLM", "plugin", "VLLM_BATCHLLM", "device", "model", "engine"} <= topics(found)
    assert "A/B" not in topics(found)
    assert "--scheduler stock" in found["findings"][-1]["text"]


@pytest.mark.long
def test_in_full_ours_computes_fewer_prompt_tokens_and_answers_as_stock() -> None:
    found = doctor()
    tokens, times, answers = (each["text"] for each in found["findings"] if each["topic"] == "A/B")
    stock, ours = (
        int(part.split()[0].rstrip(",").replace(",", ""))
        for part in (tokens.partition("stock computed ")[2], tokens.partition("batchllm ")[2])
    )
    assert ours < stock
    assert "in 3 rounds" in times
    assert answers.startswith("100.0% of 192 answers")


def topics(found: dict[str, Any]) -> set[str]:
    return {each["topic"] for each in found["findings"]}
