# SPDX-License-Identifier: Apache-2.0
"""What is expected of a request that may start: how long it will run, and what it will hold."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.guessed.length_estimator import Bounds, LengthEstimator
from vllm_batchllm.admission.guessed.quantiles import HEAD_QUANTILE, drawn_quantile
from vllm_batchllm.admission.memory_forecast import Entrant


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one candidate.

    groups: those its length is learnt in; empty where the length is known. predicted: tokens of
    its whole output. entrant: it, as the memory forecast sees it.
    """

    candidate: Candidate
    groups: tuple[Hashable, ...]
    predicted: int
    entrant: Entrant


class LengthPredictor:
    """Lengths of outputs: known ones as they are, others as learnt from the requests that ended.

    Args:
        quantile: of the lengths learnt, that a prediction takes, inside (0, 1). None: one that
            is likely to suffice for who asks to start, and a drawn one for each who runs.
        lag: steps that are put together before the output of one is known.
    """

    def __init__(self, quantile: float | None, lag: int) -> None:
        self.lengths = LengthEstimator()
        self._quantile, self._lag = quantile, lag

    def of(self, candidate: Candidate) -> Prediction:
        """What ``candidate`` will be, as far as is known now."""
        groups = () if candidate.length_known else candidate.groups()
        quantile = HEAD_QUANTILE if self._quantile is None else self._quantile
        predicted = self._predict(candidate, groups, candidate.num_generated, quantile)
        remaining = self._steps(predicted, candidate.num_generated)
        entrant = Entrant(candidate.hashes, candidate.num_tokens, remaining)
        return Prediction(candidate, groups, predicted, entrant)

    def remaining(
        self,
        candidate: Candidate,
        groups: tuple[Hashable, ...],
        num_generated: int,
        serial: int,
    ) -> int:
        """Steps that ``candidate``, with ``num_generated`` tokens, will hold its blocks if it runs.

        serial: of its admission.
        """
        quantile = self._quantile
        if quantile is None:
            quantile = drawn_quantile(serial, num_generated)
        predicted = self._predict(candidate, groups, num_generated, quantile)
        return self._steps(predicted, num_generated)

    def median_output(self, candidate: Candidate) -> int:
        """Median output of ``candidate``, tokens, as far as is known; ``max_tokens`` at first."""
        if candidate.length_known or (candidate.hint is None and not self.lengths.num_seen):
            return candidate.max_tokens
        bounds = Bounds(candidate.max_tokens, candidate.num_generated, candidate.hint)
        return self.lengths.predict(candidate.groups(), 0.5, bounds)

    def _predict(
        self,
        candidate: Candidate,
        groups: tuple[Hashable, ...],
        num_generated: int,
        quantile: float,
    ) -> int:
        if candidate.length_known:
            return candidate.max_tokens
        bounds = Bounds(candidate.max_tokens, num_generated, candidate.hint)
        return self.lengths.predict(groups, quantile, bounds)

    def _steps(self, predicted: int, num_generated: int) -> int:
        """Steps behind the first one until the blocks come back."""
        return max(predicted - num_generated - 1, 0) + self._lag
