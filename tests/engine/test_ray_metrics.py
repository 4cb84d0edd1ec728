# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's metrics are Ray's, ours are, too."""

from __future__ import annotations

from pathlib import Path

from own_process import run_alone
from tiny_engines import documents


def test_our_figures_are_in_rays_exporter_where_vllms_are(tiny_model: str, tmp_path: Path) -> None:
    prompts = documents(num_documents=2, members=3)
    lines = run_alone("ray_metrics_run.py", tiny_model, {"prompts": prompts}, tmp_path)
    values = {line.partition("{")[0]: float(line.split()[-1]) for line in lines}
    assert values["ray_vllm_batchllm_prompt_tokens_total"] == sum(map(len, prompts))
    assert values["ray_vllm_batchllm_admitted_requests_total"] == len(prompts)
    assert values["ray_vllm_batchllm_kv_blocks"] > 0
    labels = next(line for line in lines if "batchllm_prompt_tokens" in line)
    assert 'engine="0"' in labels and "model_name=" in labels
    assert any("batchllm" not in line for line in lines), "vLLM's own are there as before"
