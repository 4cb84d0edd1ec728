# SPDX-License-Identifier: Apache-2.0
"""The attention backend for CUDA in a real engine: its own code, with FlashAttention's call stood in for.

Greedy tokens are those of vLLM's own CPU attention, with vLLM's scheduler and with ours.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from own_process import run_alone
from test_features_adapters import RANK, write_adapter
from tiny_engines import StockLLM, generate, greedy, started, tokens

from vllm_batchllm.bench.random_model import RandomModelSpec, random_model

GROUPED = RandomModelSpec(
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=128,
    vocab_size=512,
    max_position_embeddings=1024,
)
ROOMY = {
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 120,
    "max_model_len": 256,
    "max_num_batched_tokens": 256,
}
TIGHT = ROOMY | {"num_gpu_blocks_override": 28}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model(tmp_path_factory.mktemp("model"), GROUPED))


def nested_prompts(seed: int = 3) -> list[list[int]]:
    """Three documents, two chapters each, four questions behind each; and three that share nothing. Shuffled."""
    rng = random.Random(seed)

    def some(count: int) -> list[int]:
        return [rng.randrange(3, 512) for _ in range(count)]

    prompts = [some(30) for _ in range(3)]
    for _ in range(3):
        document = some(96)
        for length in (0, 32):
            chapter = document + some(length)
            prompts += [chapter + some(rng.randrange(3, 20)) for _ in range(4)]
    rng.shuffle(prompts)
    return prompts


def adapters_of(prompts: list[list[int]], load: dict[str, Any]) -> dict[str, Any]:
    """As the script has them."""
    from shared_attention_run import adapters

    return adapters({"prompts": prompts, **load})


def run(
    model: str,
    folder: Path,
    engine: dict[str, Any],
    *,
    runner: str,
    backend: str = "shared",
    **load: Any,
) -> dict[str, Any]:
    """Both schedulers on the shared backend, beside the tokens of vLLM's own attention."""
    prompts = nested_prompts()
    rng = random.Random(5)
    max_tokens = [rng.randrange(4, 14) for _ in prompts]
    lora = {name: engine[name] for name in engine if "lora" in name}
    with started(StockLLM, model, **ROOMY, **lora) as stock:
        params = [greedy(n, ignore_eos=True) for n in max_tokens]
        expected = tokens(generate(stock, prompts, params, **adapters_of(prompts, load)))
    load |= {"prompts": prompts, "max_tokens": max_tokens, "backend": backend, "engine": engine}
    environment = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2"))}
    found = run_alone("shared_attention_run.py", model, load, folder, **environment)
    return {"expected": expected, **found}


def check(found: dict[str, Any], arms: tuple[str, ...] = ("stock", "ours")) -> None:
    """Same tokens; steps were planned, prefills beside some; our order shares more than vLLM's."""
    for arm in arms:
        assert found[arm]["tokens"] == found["expected"], arm
        assert found[arm]["plans"]["planned"] > 5 and found[arm]["plans"]["mixed"] > 0
        assert found[arm]["num_left"] == 0
    if len(arms) == 2:
        saved = [found[arm]["plans"]["tokens_saved"] for arm in arms]
        assert saved[1] > 1.5 * saved[0] > 0


def test_v2_runner_async_with_tight_memory_and_aborts(model: str, tmp_path: Path) -> None:
    found = run(model, tmp_path, TIGHT | {"async_scheduling": True}, runner="v2", abort=True)
    check(found)
    assert found["stock"]["num_preemptions"] > 0


@pytest.mark.long
def test_drafts_and_aborts(model: str, tmp_path: Path) -> None:
    # One engine a process: on a CPU, vLLM's second one after an engine with n-gram drafts does not start.
    drafts = {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
    }
    engine = ROOMY | {"speculative_config": drafts}
    check(run(model, tmp_path, engine, runner="v1", abort=True, arms=["ours"]), ("ours",))


@pytest.mark.long  # vLLM's own Triton kernel, which has the steps with prefills, takes its time in the interpreter
def test_portable_backend(model: str, tmp_path: Path) -> None:
    found = run(model, tmp_path, ROOMY, runner="v2", backend="portable", arms=["ours"])
    check(found, ("ours",))


@pytest.mark.parametrize(
    "option", ["on", *(pytest.param(each, marks=pytest.mark.long) for each in ("auto", "off"))]
)
def test_cpu_engine_by_option(model: str, tmp_path: Path, option: str) -> None:
    engine = ROOMY | {"num_gpu_blocks_override": 60}
    options = {"shared_attention": option}
    found = run(model, tmp_path, engine, runner="v1", backend="cpu", options=options)
    stock, ours = found["stock"], found["ours"]
    assert ours["tokens"] == stock["tokens"] == found["expected"]
    assert stock["backend"] == "CPUAttentionMetadataBuilder" and stock["plans"]["builds"] == 0
    if option == "on":
        assert ours["backend"] == "SharedCPUMetadataBuilder"
        assert ours["plans"]["planned"] > 5 and ours["plans"]["tokens_saved"] > 0
    else:
        assert ours["backend"] == "CPUAttentionMetadataBuilder" and ours["plans"]["builds"] == 0


@pytest.mark.long
def test_adapters(model: str, tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / f"adapter-{n}", n, GROUPED) for n in (1, 2)]
    engine = ROOMY | {"enable_lora": True, "max_loras": 2, "max_lora_rank": RANK}
    check(run(model, tmp_path, engine, runner="v1", adapters=paths))


@pytest.mark.long
@pytest.mark.parametrize("mutant", ["node", "length"])
def test_a_mistake_is_seen(model: str, tmp_path: Path, mutant: str) -> None:
    found = run(model, tmp_path, ROOMY, runner="v1", mutant=mutant, arms=["ours"])
    assert found["ours"]["tokens"] != found["expected"]


@pytest.mark.long
@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("engine", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_both_runners_with_aborts(
    model: str, tmp_path: Path, runner: str, engine: dict[str, Any]
) -> None:
    check(run(model, tmp_path, engine, runner=runner, abort=True))
