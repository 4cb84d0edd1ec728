# SPDX-License-Identifier: Apache-2.0
"""Published figures of BatchLLM and of vLLM 0.6.4 beside it (arXiv 2412.03594), as rows to simulate.

Only what the paper states as a number. Its engine: chunks of 2,048 tokens, 256 requests at once.
BatchLLM is our scheduler with the order `paper` and prefix-shared attention, bounded by memory.
Left out: vLLM without chunked prefill (vLLM of today always mixes prefills and decodes), SGLang
(only its order is re-implemented here), and the bars of its plots that bear no number.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim_rows import Row

from vllm_batchllm.simulate.cost_model import Constants

#: Parts of a run at these constants are what the fitted ones are multiplied with.
UNIT = Constants(efficiency=1.0, step_s=1.0, request_s=1.0)
#: BatchLLM counts no requests; this many at once is never reached on these devices.
MANY = 1024


@dataclass(frozen=True, slots=True)
class Published:
    """A figure and the row that stands for it. requests_per_s, saved_ratio: None if not stated.

    is_fitted: the constants were fitted on its speed; else it is held against them.
    """

    row: Row
    requests_per_s: float | None
    saved_ratio: float | None = None
    is_fitted: bool = False


def _row(
    label: str, workload: str, arm: str, num_requests: int, *, device: str = "A100-80GB",
    model: str = "Llama-3.1-8B", prefix_caching: bool = True, output_scale: float = 1.0,
) -> Row:  # fmt: skip
    is_batchllm = arm == "paper"
    return Row(
        label=label,
        workload=workload,
        arm=arm,
        num_requests=num_requests,
        device=device,
        model=model,
        max_num_seqs=MANY if is_batchllm else 256,
        max_num_batched_tokens=2048,
        prefix_caching=prefix_caching,
        kv_reading="once" if is_batchllm else "apart",
        output_scale=output_scale,
        constants=UNIT,
        is_past=True,
    )


_SHORT, _LONG = "2000/200, degree 16", "16000/200, degree 16"
FIGURES = [
    Published(
        _row(f"{_SHORT}: vLLM, shuffled", "micro-2000-200-d16", "stock", 6400), 6.0, 0.401, True
    ),
    Published(
        _row(f"{_SHORT}: vLLM, sorted", "micro-2000-200-d16", "sorted", 6400), 13.02, None, True
    ),
    Published(_row(f"{_SHORT}: BatchLLM", "micro-2000-200-d16", "paper", 6400), 18.0, 0.852, True),
    Published(_row(f"{_LONG}: vLLM, shuffled", "long-16000", "stock", 1600), 0.49, 0.063, True),
    Published(_row(f"{_LONG}: BatchLLM", "long-16000", "paper", 1600), 5.29, 0.926, True),
]


def _industry(
    device: str, figures: tuple[float, float, float], output_scale: float
) -> list[Published]:
    note = "" if output_scale == 1 else f", outputs x {output_scale:g}"
    arms = (
        ("vLLM", "stock", False),
        ("vLLM, prefix caching", "stock", True),
        ("BatchLLM", "paper", True),
    )
    saved = (None, 0.358, 0.581)
    return [
        Published(
            _row(
                f"industry, {device}{note}: {name}",
                "industry",
                arm,
                8000,
                device=device,
                model="Qwen2.5-7B",
                prefix_caching=caching,
                output_scale=output_scale,
            ),
            figure,
            share,
        )
        for (name, arm, caching), figure, share in zip(arms, figures, saved, strict=True)
    ]


_A100, _MI250 = (5.48, 6.71, 8.67), (2.84, 3.36, 4.24)
FIGURES += _industry("A100-80GB", _A100, 1) + _industry("MI250", _MI250, 1)
#: Two shapes at degree 4, of which only the bound of the saving is stated.
FIGURES += [
    Published(_row(f"{shape}, degree 4: sorted", f"micro-{name}-d4", "sorted", 1600), None, saved)
    for shape, name, saved in (
        ("2000/200", "2000-200", 0.682),
        ("2000/1000", "2000-1000", 0.500),
        ("1000/1000", "1000-1000", 0.375),
    )
]
FIGURES += [
    Published(_row(f"{shape}, degree 16: sorted", f"micro-{name}-d16", "sorted", 1600), None, saved)
    for shape, name, saved in (("2000/1000", "2000-1000", 0.625), ("1000/1000", "1000-1000", 0.469))
]
#: Not a figure of its own: the same with the longer outputs that the industry rows point to.
WHAT_IF = _industry("A100-80GB", _A100, 4)
