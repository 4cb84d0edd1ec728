# SPDX-License-Identifier: Apache-2.0
"""What one request adds to the time of an engine, by the same cost model as its steps: what a cut of a batch weighs.

A token of a prompt and a token of an output do not cost the same: the latter reads its whole context. In seconds, both kinds of
work are one, and a replica that has done so many of them in a second has a speed, 1 if the costs are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from vllm_batchllm.simulate.cost_model import CostModel, StepTime, StepWork

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_MANY = 2**20


@dataclass(frozen=True, slots=True)
class RequestCosts:
    """Seconds that are added to a step that is full: per token, (query, key) pair of a prefill, token of KV read, token sampled.

    What a step takes whatever it does (weights read, launches) belongs to no request and is left out.
    """

    token_s: float
    pair_s: float
    context_s: float
    sampled_s: float

    @classmethod
    def of(cls, costs: CostModel) -> Self:
        """Read off a cost model, at steps so large that what is fixed does not show.

        Where shared KV is read once, what decodes read is counted as if it was not: nobody knows who will run beside whom.
        """
        none = costs.time_of(StepWork(num_tokens=_MANY, num_requests=1, num_sampled=0))
        pairs = costs.time_of(
            StepWork(num_tokens=_MANY, num_requests=1, num_sampled=0, prefill_pairs=_MANY)
        )
        read = costs.time_of(
            StepWork(
                num_tokens=_MANY,
                num_requests=1,
                num_sampled=0,
                decode_kv_tokens=_MANY,
                held_kv_tokens=_MANY,
            )
        )
        sampled = costs.time_of(StepWork(num_tokens=_MANY, num_requests=_MANY, num_sampled=_MANY))
        more = (each.total_s - none.total_s for each in (pairs, read, sampled))
        pair_s, context_s, sampled_s = (each / _MANY for each in more)
        return cls((none.total_s - _fixed_s(none)) / _MANY, pair_s, context_s, sampled_s)

    def of_requests(self, lengths: Ints, hits: Ints, outputs: Floats) -> Floats:
        """Seconds of requests that find ``hits`` of their ``lengths`` prompt tokens in the cache and produce ``outputs``."""
        more = np.maximum(outputs - 1, 0)
        read = more * lengths + more * (more + 1) / 2
        seconds: Floats = self.of_prompt(hits, lengths) + self.token_s * more
        seconds = seconds + self.context_s * read + self.sampled_s * outputs
        return seconds

    def of_prompt(self, starts: Ints, ends: Ints) -> Floats:
        """Seconds to compute prompt tokens from ``starts`` to ``ends``."""
        begin, end = starts.astype(np.float64), ends.astype(np.float64)
        pairs = (end * (end + 1) - begin * (begin + 1)) / 2
        seconds: Floats = self.token_s * (end - begin) + self.pair_s * pairs
        return seconds

    def of_step(self, work: StepWork) -> float:
        """The same for what a step has done."""
        return (
            self.token_s * work.num_tokens
            + self.pair_s * work.prefill_pairs
            + self.context_s * work.decode_kv_tokens
            + self.sampled_s * work.num_sampled
        )


def _fixed_s(time: StepTime) -> float:
    return time.step_s + time.launch_s + time.requests_s
