# SPDX-License-Identifier: Apache-2.0
"""What users can set of admission, in admission's own words."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batchllm.config import BatchLLMConfig


@dataclass(frozen=True, slots=True)
class AdmissionOptions:
    """Options of admission, checked by ``BatchLLMConfig``.

    threshold: the published rule instead of a look ahead: a request starts while the blocks held,
    its own included, stay within this share of the capacity (BatchLLM, arXiv 2412.03594: a
    fixed M_threshold).
    """

    threshold: float | None = None


def admission_options(config: BatchLLMConfig) -> AdmissionOptions | None:
    """What ``config`` says about admission; None: as vLLM does."""
    if config.admission_rule == "stock":
        return None
    if config.admission_rule == "threshold":
        return AdmissionOptions(threshold=config.kv_threshold or 0.9)
    return AdmissionOptions()
