# SPDX-License-Identifier: Apache-2.0
"""Two engines for the whole session: stock vLLM and ours, same model, same cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "block_size": 32,
    "num_gpu_blocks_override": 32,
    "max_model_len": 768,
    "max_num_seqs": 6,
    "seed": 0,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker("engine")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The real small model that ``make model`` fetches."""
    assert (MODEL / "config.json").exists(), f"{MODEL} is missing; run `make model`"
    return str(MODEL)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose engines start in seconds: for tests that need engines of their own."""
    from tiny_engines import TINY

    from vllm_batchllm.bench.random_model import random_model

    return str(random_model(tmp_path_factory.mktemp("tiny"), TINY))


@pytest.fixture(scope="session")
def stock_llm(smollm2: str) -> Iterator[Any]:
    """vLLM as it comes."""
    from vllm import LLM

    yield LLM(smollm2, **ENGINE)


@pytest.fixture(scope="session")
def batch_llm(smollm2: str) -> Iterator[Any]:
    """Ours, with the same arguments."""
    from vllm_batchllm import LLM

    yield LLM(smollm2, **ENGINE)


@pytest.fixture
def stock(stock_llm: Any) -> Any:
    """The stock engine with an empty cache."""
    assert stock_llm.reset_prefix_cache()
    return stock_llm


@pytest.fixture
def ours(batch_llm: Any) -> Iterator[Any]:
    """Our engine with an empty cache and default options."""
    assert batch_llm.reset_prefix_cache()
    options = batch_llm.batchllm_config
    yield batch_llm
    batch_llm.batchllm_config = options
    assert not batch_llm.llm_engine.has_unfinished_requests()
