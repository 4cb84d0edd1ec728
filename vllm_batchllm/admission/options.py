# SPDX-License-Identifier: Apache-2.0
"""What users can set of admission, in admission's own words."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batchllm.config import BatchLLMConfig


@dataclass(frozen=True, slots=True)
class AdmissionOptions:
    """Options of admission, checked by ``BatchLLMConfig``.

    quantile: of the output length, by which requests of unknown length are planned; None: as
    ``LengthPredictor`` says, a drawn one for each that runs.
    overcommit: multiple of the capacity that the peak may reach. pace: multiple of the number
    of requests that pacing aims at, 0 for no pacing. Both None: by the cost rule.
    threshold: the published rule instead of all this: a request starts while the blocks held,
    its own included, stay within this share of the capacity (BatchLLM, arXiv 2412.03594: a
    fixed M_threshold).
    """

    quantile: float | None = None
    overcommit: float | None = None
    pace: float | None = None
    threshold: float | None = None


def admission_options(config: BatchLLMConfig) -> AdmissionOptions | None:
    """What ``config`` says about admission; None: as vLLM does."""
    if config.admission_rule == "stock":
        return None
    if config.admission_rule == "threshold":
        return AdmissionOptions(threshold=config.kv_threshold or 0.9)
    return AdmissionOptions(config.quantile, config.overcommit, config.pace)
