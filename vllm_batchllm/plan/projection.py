# SPDX-License-Identifier: Apache-2.0
"""From a sample that is tokenised to all: tokens and savings by regression on what the text of every line says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_IN_95_PERCENT = 1.96


@dataclass(frozen=True, slots=True)
class Projection:
    """tokens, saved: of all lines. ratio: of saved to tokens; ratio_error: it is right to so much in 95 of 100 samples."""

    tokens: float
    saved: float
    ratio: float
    ratio_error: float


def project(
    sampled_bytes: Floats,
    sampled_shared: Floats,
    tokens: Floats,
    saved: Floats,
    all_bytes: Floats,
    all_shared: Floats,
) -> Projection:
    """All four samples have an entry for each line drawn; `all_bytes` for each there is, `all_shared` for those that
    have one before them.

    The regression estimator of survey sampling: the mean of the sample, moved along the line of least squares to the
    mean of all. Its error is that of the residuals.
    """
    mean_tokens, token_rest = _moved(sampled_bytes, tokens, float(all_bytes.mean()))
    mean_saved, saved_rest = _moved(sampled_shared, saved, float(all_shared.mean()))
    all_tokens = max(mean_tokens, 1.0) * len(all_bytes)
    all_saved = min(max(mean_saved, 0.0) * len(all_shared), all_tokens)
    ratio = all_saved / all_tokens
    rest = saved_rest - ratio * token_rest
    num_sampled, num_all = len(tokens), len(all_bytes)
    spread = float(rest.std(ddof=1)) if num_sampled > 1 else 0.0
    left_out = math.sqrt(max(0.0, 1 - num_sampled / num_all))
    error = _IN_95_PERCENT * spread / math.sqrt(num_sampled) * left_out * num_all / all_tokens
    return Projection(all_tokens, all_saved, ratio, error)


def _moved(known: Floats, wanted: Floats, mean_of_all: float) -> tuple[float, Floats]:
    """The mean of `wanted` over all, and what is left of each of the sample."""
    centred = known - known.mean()
    variance = float((centred**2).sum())
    slope = float((centred * wanted).sum()) / variance if variance else 0.0
    mean = float(wanted.mean())
    rest: Floats = wanted - mean - slope * centred
    return mean + slope * (mean_of_all - float(known.mean())), rest
