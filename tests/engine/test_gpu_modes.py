# SPDX-License-Identifier: Apache-2.0
"""The engine as GPUs run it: model runner V2, with steps put together ahead of their outputs or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_engines import documents

HERE = Path(__file__).parent
V2_RUNNER = "vllm.v1.worker.gpu.model_runner"


def run(model: str, folder: Path, **engine: Any) -> dict[str, Any]:
    """Both engines on one load; what each of them did."""
    load = {"prompts": documents(), "max_tokens": 12, "engine": engine}
    load_file, result = folder / "load.json", folder / "result.json"
    load_file.write_text(json.dumps(load))
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, str(HERE / "gpu_mode_run.py"), model, str(load_file), str(result)],
        env=os.environ
        | {
            "TRITON_INTERPRET": "1",
            "VLLM_USE_V2_MODEL_RUNNER": "1",
            "PYTHONPATH": paths,
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.exists(), ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.read_text())
    return found


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_v2_runner_answers_as_stock_and_computes_less(
    tiny_model: str, tmp_path: Path, is_async: bool
) -> None:
    found = run(tiny_model, tmp_path, async_scheduling=is_async)
    stock, ours = found["stock"], found["ours"]
    assert V2_RUNNER in stock["runners"] and V2_RUNNER in ours["runners"]
    assert stock["scheduler"] == ("AsyncScheduler" if is_async else "Scheduler")
    assert ours["scheduler"] == ("AsyncBatchLLMScheduler" if is_async else "BatchLLMScheduler")
    assert ours["tokens"] == stock["tokens"]
    assert ours["num_computed"] < 0.8 * stock["num_computed"]
    assert ours["num_left"] == 0
