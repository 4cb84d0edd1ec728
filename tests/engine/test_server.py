# SPDX-License-Identifier: Apache-2.0
"""``vllm serve --scheduler batchllm`` and the engine in its own process, from outside."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import ENGINE
from live_server import SERVED_NAME, LiveServer, serving
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(scope="module")
def server(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    options = ["--dtype", "float32", "--enforce-eager", "--block-size", "32"]
    options += ["--max-model-len", "768", "--max-num-seqs", "6"]
    options += ["--num-gpu-blocks-override", str(ENGINE["num_gpu_blocks_override"])]
    with serving(smollm2, tmp_path_factory.mktemp("serve"), options=options) as running:
        yield running


def test_the_server_says_what_was_chosen(server) -> None:
    lines = [line for line in server.log.read_text().splitlines() if "Scheduler: batchllm" in line]
    assert len(lines) == 1 and "order=dfs" in lines[0]


def test_openai_client_gets_stocks_answers_group_by_group(server, stock) -> None:
    from vllm import SamplingParams

    documents = [f"Document {n}. " + f"The number {n} is odd or even. " * 25 for n in range(4)]
    prompts = [f"{doc}\nQuestion {q}: which number? Answer:" for q in range(3) for doc in documents]
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")

    async def ask(prompt: str) -> str:
        answer = await client.completions.create(
            model=SERVED_NAME, prompt=prompt, max_tokens=6, temperature=0
        )
        return answer.choices[0].text

    async def ask_all() -> list[str]:
        return await asyncio.gather(*map(ask, prompts))

    answers = asyncio.run(ask_all())
    expected = stock.generate(prompts, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
    assert answers == [output.outputs[0].text for output in expected]


def test_log_probabilities_from_a_start_on_are_stocks(server, stock) -> None:
    """Over HTTP, by completions with and without echo and by chat, from the cache."""
    from openai import BadRequestError, OpenAI
    from vllm import SamplingParams

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    prompts = [[40 + n % 400 for n in range(300)] + [7, 11, 100 + q, 13] for q in range(4)]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    expected = stock.generate(inputs, params, use_tqdm=False)
    before = scrape(server)

    def ask(prompt: list[int], start: object, **fields: object) -> dict:
        body = {"vllm_xargs": {"prompt_logprobs_start": start}} | fields
        answer = client.completions.create(
            model=SERVED_NAME, prompt=prompt, max_tokens=1, temperature=0, extra_body=body
        )
        return answer.model_dump()["choices"][0]

    for prompt, whole in zip(prompts, expected, strict=True):
        stocks = [whole.prompt_logprobs[at][prompt[at]].logprob for at in range(300, 304)]
        found = ask(prompt, 300, prompt_logprobs=1)["prompt_logprobs"]
        assert found[:300] == [None] * 300 and len(found) == 304
        ours = [found[at][str(prompt[at])]["logprob"] for at in range(300, 304)]
        assert ours == pytest.approx(stocks, abs=1e-5)
        echoed = ask(prompt, 300, echo=True, logprobs=1)["logprobs"]["token_logprobs"]
        assert echoed[:300] == [None] * 300
        assert echoed[300:304] == pytest.approx(stocks, abs=1e-5)
    after = scrape(server)
    computed = "vllm_batchllm:computed_prompt_tokens_total"
    assert after[computed] - before[computed] < 304 + 7 * 40, (
        "the prefix did not come from the cache"
    )
    for bad in (304, -1, 1.5, "300"):
        with pytest.raises(BadRequestError, match="prompt_logprobs_start"):
            ask(prompts[0], bad, prompt_logprobs=1)
    with pytest.raises(BadRequestError, match="without prompt_logprobs"):
        ask(prompts[0], 3)
    chat = client.chat.completions.create(
        model=SERVED_NAME,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=1,
        extra_body={"prompt_logprobs": 0, "vllm_xargs": {"prompt_logprobs_start": 9}},
    ).model_dump()
    assert chat["prompt_logprobs"][:9] == [None] * 9 and None not in chat["prompt_logprobs"][9:]


def test_chat_and_a_bad_request(server) -> None:
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    ask = client.chat.completions.create
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with pytest.raises(BadRequestError, match="768"):
        ask(model=SERVED_NAME, messages=[{"role": "user", "content": "word " * 900}])
    answer = ask(model=SERVED_NAME, messages=question, max_tokens=12, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def scrape(server: LiveServer) -> dict[str, float]:
    """``GET /metrics``: value by sample name, summed over labels."""
    text = server.get("/metrics").text
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("vllm_batchllm:"):
                assert sample.labels["model_name"] == SERVED_NAME and sample.labels["engine"] == "0"
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def test_metrics_tell_exactly_what_was_sent(server) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    before = scrape(server)
    prompt_tokens, num_requests, num_outputs = 0, 4, 5
    for number in range(num_requests):  # one after the other: a step per output token
        answer = client.completions.create(
            model=SERVED_NAME,
            prompt="Counting the same things twice costs twice. " * 12 + f"Item {number}:",
            max_tokens=num_outputs,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        prompt_tokens += answer.usage.prompt_tokens
    after = scrape(server)
    change = {name: after[name] - before.get(name, 0.0) for name in after}

    def ours(name: str) -> float:
        return change[f"vllm_batchllm:{name}"]

    assert ours("admitted_requests_total") == num_requests
    assert ours("prompt_tokens_total") == prompt_tokens == change["vllm:prompt_tokens_total"]
    assert ours("steps_total") == num_requests * num_outputs
    assert ours("admission_hit_tokens_total") == change["vllm:prefix_cache_hits_total"] >= 3 * 64
    assert ours("computed_prompt_tokens_total") == prompt_tokens - ours(
        "admission_hit_tokens_total"
    )
    assert ours("preemptions_total") == change["vllm:num_preemptions_total"] == 0
    counters = {name for name in before if name.endswith("_total")}
    assert all(after[name] >= before[name] for name in counters), "a counter fell"
    assert "vllm:num_requests_running" in after


def test_metrics_carry_every_family(server) -> None:
    from vllm_batchllm.stats.families import FAMILIES

    names = set(scrape(server))
    counters = {family.full_name for family in FAMILIES if family.kind == "counter"}
    assert counters <= names and "vllm:generation_tokens_total" in names


SEPARATE_PROCESS = """
import sys
from vllm import SamplingParams
from vllm_batchllm import LLM
if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, block_size=32,
              max_model_len=256, num_gpu_blocks_override=24, max_num_seqs=2)
    prompts = [f"{n % 3} " * 60 + f"Item {n}:" for n in range(12)]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=4))
    assert len(outputs) == 12 and all(len(o.outputs[0].token_ids) == 4 for o in outputs)
    report = llm.report()
    assert report.reuse_efficiency >= 0.999, report
    assert report.steps > 1 and report.plan_s > 0 and report.num_requests == 12
    print(report)
"""


def test_an_engine_in_its_own_process_answers_and_reports(smollm2, tmp_path) -> None:
    """Counters and outputs come back from another process. That the engine is held while the
    batch is queued cannot be seen from here; tests/scheduler/test_held.py shows it."""
    script = tmp_path / "run.py"
    script.write_text(SEPARATE_PROCESS)
    done = subprocess.run(
        [sys.executable, str(script), smollm2],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "batchllm report" in done.stdout
