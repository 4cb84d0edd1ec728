# SPDX-License-Identifier: Apache-2.0
"""Compare the tokens of the arms; a difference is excused only by a tie that is shown.

Another order of requests means other shapes of matrix products and so other rounding. Where
the two best logits are all but equal, rounding may choose the other one; both outputs are then
right. Anything else is an error somewhere and is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm_batchllm.bench.sampling import STOP_TOKEN_ID
from vllm_batchllm.measure.metrics import Difference, OutputMatch
from vllm_batchllm.workloads.batch import Batch

#: Largest distance of the two best logits at which either token is right.
TIE_GAP = 1e-4

Outputs = Sequence[Sequence[int]]
#: (request, common output, one token, other token) -> distance, or None if not the best two.
GapOf = Callable[[int, Sequence[int], int, int], float | None]


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """Position of the first token that differs, counting a missing one; None if equal."""
    if list(expected) == list(got):
        return None
    for position, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return position
    return min(len(expected), len(got))


def compare_outputs(
    arm: str, rounds: Sequence[tuple[Outputs, Outputs]], gap_of: GapOf
) -> OutputMatch:
    """Compare an arm with the reference over all rounds.

    Args:
        arm: whose outputs are second in each pair.
        rounds: (reference outputs, outputs of the arm) of each round, in the batch's order.
        gap_of: finds the distance of two tokens' logits.
    """
    compared, equal, differences = 0, 0, []
    for index, (reference, outputs) in enumerate(rounds):
        for request, (expected, got) in enumerate(zip(reference, outputs, strict=True)):
            compared += 1
            position = first_difference(expected, got)
            if position is None:
                equal += 1
            else:
                differences.append(_judge(arm, index, request, position, expected, got, gap_of))
    num_ties = sum(item.resolved for item in differences)
    return OutputMatch(arm, compared, equal, num_ties, tuple(differences))


def _judge(
    arm: str,
    round_index: int,
    request: int,
    position: int,
    expected: Sequence[int],
    got: Sequence[int],
    gap_of: GapOf,
) -> Difference:
    one = expected[position] if position < len(expected) else None
    other = got[position] if position < len(got) else None
    gap = None
    if one is not None and other is not None:
        gap = gap_of(request, expected[:position], one, other)
    resolved = gap is not None and gap <= TIE_GAP
    return Difference(arm, round_index, request, position, one, other, gap, resolved)


def gap_finder(llm: Any, batch: Batch) -> GapOf:
    """A `GapOf` that asks a live engine; each question is answered once.

    Differences of log-probabilities equal those of logits, since both share a normaliser.
    """
    answers: dict[tuple[int, tuple[int, ...]], dict[int, float]] = {}

    def gap_of(request: int, common: Sequence[int], one: int, other: int) -> float | None:
        key = (request, tuple(common))
        if key not in answers:
            answers[key] = _best_two(llm, [*batch.prompts[request], *common], batch.lengths_known)
        best = answers[key]
        return abs(best[one] - best[other]) if best.keys() == {one, other} else None

    return gap_of


def _best_two(llm: Any, tokens: list[int], lengths_known: bool) -> dict[int, float]:
    """The two best next tokens and their log-probabilities; a banned stop token left out."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=3
    )
    [output] = llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
    found = {token: float(entry.logprob) for token, entry in output.outputs[0].logprobs[0].items()}
    if not lengths_known:
        found.pop(STOP_TOKEN_ID, None)
    best = sorted(found, key=lambda token: found[token], reverse=True)[:2]
    return {token: found[token] for token in best}
