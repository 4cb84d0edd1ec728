# SPDX-License-Identifier: Apache-2.0
"""Our models for lm-evaluation-harness, where it is installed (the extra `lm-eval`)."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytest.importorskip("tenacity", reason="the extra lm-eval is not installed")


def test_both_models_are_known_by_their_names() -> None:
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import get_model

    from vllm_batchllm.lm_eval.completions_model import BatchLLMCompletions
    from vllm_batchllm.lm_eval.engine_model import BatchLLMModel

    assert get_model("vllm-batchllm") is BatchLLMModel
    assert get_model("vllm-batchllm-completions") is BatchLLMCompletions


def test_replicas_are_refused_by_name() -> None:
    from vllm_batchllm.lm_eval.engine_model import BatchLLMModel

    with pytest.raises(ValueError, match="data_parallel_size = 2"):
        BatchLLMModel("model", data_parallel_size=2)


@pytest.mark.parametrize(
    ("context", "continuation", "cut"),
    [
        ([1, 2], [3], ([1, 2], [3])),
        ([1, 2, 3, 4], [5, 6], ([3, 4], [5, 6])),
        ([1], [2, 3, 4, 5, 6], ([3], [4, 5, 6])),
    ],
)
def test_what_is_too_long_is_cut_from_the_left(
    context: list[int], continuation: list[int], cut: tuple[list[int], list[int]]
) -> None:
    from vllm_batchllm.lm_eval.engine_model import BatchLLMModel

    model: Any = object.__new__(BatchLLMModel)
    model._max_length = 5
    assert model._cut(context, continuation) == cut


def test_a_body_says_where_the_earliest_of_its_continuations_begins() -> None:
    from vllm_batchllm.lm_eval.completions_model import BatchLLMCompletions

    client: Any = object.__new__(BatchLLMCompletions)
    client.model, client.max_length, client._starts = "m", 100, {}
    chunk = [(None, [1, 2, 3], [4]), (None, [5, 6], [7, 8])]
    inputs, starts, _ = client.batch_loglikelihood_requests([chunk])
    assert starts == [3, 2]
    payload = client._create_payload(inputs, generate=False, seed=1)
    assert payload["vllm_xargs"] == {"prompt_logprobs_start": 2} and payload["echo"]
    assert client._create_payload(inputs[:1])["vllm_xargs"] == {"prompt_logprobs_start": 3}
    generating = client._create_payload(inputs, generate=True, gen_kwargs={"max_tokens": 3})
    assert "vllm_xargs" not in generating
