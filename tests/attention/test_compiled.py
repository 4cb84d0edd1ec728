# SPDX-License-Identifier: Apache-2.0
"""Everything that is shipped, compiled for devices that are not here: no spills, within shared memory, on matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_batchllm.attention.tiles import ARCHITECTURES, KV_TYPES, SHIPPED

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "compile_kernels.py"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What became of every kernel, by architecture; in processes of their own, since Triton is interpreted in this one."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    files = {each.name: folder / f"{each.name}.json" for each in ARCHITECTURES}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "--only", name, "--json", str(file)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, file in files.items()
    ]
    for process in started:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors[-2000:]
    return {name: json.loads(file.read_text()) for name, file in files.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_shipped_kernels_compile_without_spills(architecture, compiled):
    found = compiled[architecture.name]
    assert {each["kernel"] for each in found} >= {
        "prefix",
        "equal_blocks",
        "finish",
        "merge_into",
        "merge",
    }
    for each in found:
        assert each["spill_bytes"] == 0, each
        assert each["shared_bytes"] <= architecture.shared_bytes, each
    prefix = [each for each in found if each["kernel"] == "prefix"]
    heads = {head for name, head in SHIPPED if name == architecture.name}
    assert {(each["head_size"], each["kv_type"]) for each in prefix} == {
        (head, kv) for head in heads for kv in KV_TYPES[architecture.name]
    }
    for each in prefix:
        uses = each["instructions"]
        if architecture.backend == "hip":
            assert uses["mfma"] > 0, each
            continue
        assert uses.get("LDGSTS.E.BYPASS.128", 0) > 0, (
            each
        )  # copies of 16 bytes that nobody waits for
        if each["m"] >= 64 and architecture.name == "sm_90":
            assert uses.get("HGMMA", 0) > 0, each
        else:
            assert uses.get("HMMA", 0) + uses.get("UTCHMMA", 0) > 0, each
