# SPDX-License-Identifier: Apache-2.0
"""What is kept ready for a GPU runs here, too: the same scripts on small shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"


def run(script: str, folder: Path, *arguments: str) -> tuple[str, dict]:
    """What a script prints and writes."""
    out = folder / "result.json"
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, str(GPU / script), "--dry", "--out", str(out), *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout, json.loads(out.read_text())


def test_smoke(tmp_path: Path) -> None:
    printed, written = run("smoke.py", tmp_path)
    shared, apart = written["cases"]
    assert printed.count("|") > 20 and "wrong" not in printed
    for case in (shared, apart):
        assert 0 < case["error_grouped"] < 1e-6
    assert 0 < shared["error_rival"] < 1e-6 and apart["error_rival"] is None
    assert shared["kv_tokens"] == 10 * 84 and shared["kv_tokens_saved"] == 2 * 4 * 64
    assert apart["kv_tokens_saved"] == 0


@pytest.mark.long
def test_engine_and_its_record(tmp_path: Path) -> None:
    printed, written = run("engine.py", tmp_path, "--rounds", "1")
    assert set(written["gains"]) == {"96x4"} and written["nothing_shared"] > 0
    assert "| 96x4 |" in printed and printed.count("100.0%") == 2
