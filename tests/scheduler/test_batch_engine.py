# SPDX-License-Identifier: Apache-2.0
"""``LLM`` is what jobs and replicas are written against.

A type checker cannot hold the two together: vLLM's classes are Any to it.
"""

from __future__ import annotations

import inspect

import pytest

from vllm_batchllm import LLM
from vllm_batchllm.engine import BatchEngine
from vllm_batchllm.offline.report import BatchReport

METHODS = [
    name for name, member in vars(BatchEngine).items() if name[0] != "_" and callable(member)
]


def test_the_protocol_asks_for_something() -> None:
    assert METHODS == ["generate", "chat", "report"]
    assert callable(BatchReport.to_dict)


@pytest.mark.parametrize("name", METHODS)
def test_llm_takes_what_the_protocol_promises(name: str) -> None:
    asked = inspect.signature(getattr(BatchEngine, name)).parameters
    taken = inspect.signature(getattr(LLM, name)).parameters
    named = [each for each in asked if each != "options"]
    assert named == list(taken)[: len(named)]
