# SPDX-License-Identifier: Apache-2.0
"""The stop token comes at exactly the wanted position, wherever the request sits in the batch."""

from __future__ import annotations

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from vllm_batchllm.bench.forced_stop import ForcedStopProcessor
from vllm_batchllm.bench.sampling import OUTPUT_LEN_KEY, STOP_TOKEN_ID, sampling_params
from vllm_batchllm.workloads.batch import Batch

VOCAB = 8


def params(target: object) -> SamplingParams:
    return SamplingParams(extra_args={OUTPUT_LEN_KEY: target})


def processor() -> ForcedStopProcessor:
    return ForcedStopProcessor(None, torch.device("cpu"), False)


def update(**changes: list) -> BatchUpdate:  # type: ignore[type-arg]
    return BatchUpdate(**({"batch_size": 4, "removed": [], "added": [], "moved": []} | changes))


def chosen(subject: ForcedStopProcessor, rows: int = 3) -> list[int]:
    """Greedy tokens where the stop token would be the best of every row, token 5 the second."""
    logits = torch.zeros(rows, VOCAB)
    logits[:, STOP_TOKEN_ID], logits[:, 5] = 9.0, 5.0
    tokens: list[int] = subject.apply(logits).argmax(dim=-1).tolist()
    return tokens


def test_the_stop_token_is_banned_before_and_forced_at_its_position() -> None:
    subject, output_ids = processor(), []  # type: ignore[var-annotated]
    subject.update_state(update(added=[(0, params(3), [1], output_ids)]))
    produced = []
    for _ in range(3):
        token = chosen(subject, rows=1)[0]
        produced.append(token)
        output_ids.append(token)
        subject.update_state(None)
    assert produced == [5, 5, STOP_TOKEN_ID]


def test_requests_without_a_target_are_left_alone() -> None:
    subject = processor()
    assert chosen(subject) == [STOP_TOKEN_ID] * 3
    added = [(0, SamplingParams(), [1], []), (1, params(9), [1], [])]
    subject.update_state(update(added=added))
    assert chosen(subject) == [STOP_TOKEN_ID, 5, STOP_TOKEN_ID]


def test_a_request_resumed_after_preemption_keeps_its_count() -> None:
    subject = processor()
    subject.update_state(update(added=[(1, params(3), [1], [7, 7])]))
    assert chosen(subject)[1] == STOP_TOKEN_ID


def test_targets_follow_their_requests_through_the_batch() -> None:
    subject = processor()
    added = [(0, params(1), [1], []), (1, params(9), [1], [])]
    subject.update_state(update(added=added))
    subject.update_state(update(moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert chosen(subject, rows=2) == [5, STOP_TOKEN_ID]
    subject.update_state(update(removed=[0], moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert chosen(subject, rows=1) == [STOP_TOKEN_ID]


@pytest.mark.parametrize("target", [0, -1, "3"])
def test_bad_targets_are_refused(target: object) -> None:
    with pytest.raises(ValueError, match=OUTPUT_LEN_KEY):
        ForcedStopProcessor.validate_params(params(target))


def test_the_engine_is_told_lengths_only_where_they_are_known() -> None:
    prompts, lengths = [[9], [10]], [3, 40]
    known = sampling_params(Batch("b", prompts, lengths))
    assert [item.max_tokens for item in known] == lengths
    unknown = sampling_params(Batch("b", prompts, lengths, lengths_known=False))
    assert {item.max_tokens for item in unknown} == {64}
    assert all(item.stop_token_ids == [STOP_TOKEN_ID] for item in unknown)
