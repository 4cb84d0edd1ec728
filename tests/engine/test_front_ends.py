# SPDX-License-Identifier: Apache-2.0
"""What the front ends refuse, and that stock runs stay stock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_batchllm import LLM
from vllm_batchllm.config import BatchLLMConfig

VLLM = Path(sys.executable).with_name("vllm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_prefix_caching": False}, "needs prefix caching.*Give --enable-prefix-caching"),
        ({"batchllm": {"ordr": "dfs"}}, "unknown batchllm option 'ordr'.*'order'"),
        ({"additional_config": {"batchllm": {"lookahead": 0}}}, "'lookahead' = 0 is not allowed"),
        ({"scheduler_cls": "my.Scheduler"}, "runs its own scheduler.*'my.Scheduler'"),
        (
            {"batchllm": {}, "additional_config": {"batchllm": {}}},
            "given twice: .*leave one out",
        ),
    ],
)
def test_llm_refuses_before_an_engine_starts(smollm2, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(smollm2, **arguments)


def test_llm_refuses_a_missing_or_half_converted_model(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"nowhere' does not exist; give a folder or a hub name"):
        LLM(str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no config.json, so it is no model or only half"):
        LLM(str(tmp_path))


def test_llm_refuses_an_unsupported_vllm(smollm2, monkeypatch) -> None:
    monkeypatch.setattr("vllm_batchllm.compat.version.installed_vllm_version", lambda: "0.99.0")
    with pytest.raises(
        RuntimeError, match=r"vLLM 0\.99\.0 is installed.*supports releases of vLLM >= 0\.32"
    ):
        LLM(smollm2)


def test_options_reach_the_scheduler(batch_llm) -> None:
    scheduler = batch_llm.llm_engine.engine_core.engine_core.scheduler
    assert scheduler.batchllm_config == batch_llm.batchllm_config == BatchLLMConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-enable-prefix-caching"], "needs prefix caching"),
        (["--additional-config", '{"batchllm": {"order": "lifo"}}'], "'order' = 'lifo'"),
    ],
)
def test_serve_refuses_at_start(smollm2, words, message) -> None:
    done = subprocess.run(
        [VLLM, "serve", smollm2, "--scheduler", "batchllm", "--port", "0", *words],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1] + done.stdout, done.stderr[-2000:]


STOCK_RUN = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, block_size=32, max_model_len=256,
          distributed_executor_backend="uni", num_gpu_blocks_override=24, max_num_seqs=3)
scheduler = llm.llm_engine.engine_core.engine_core.scheduler
schedule, admitted = scheduler.schedule, []
def recording(*args):
    output = schedule(*args)
    admitted.extend(int(new.req_id.split("-")[0]) for new in output.scheduled_new_reqs)
    return output
scheduler.schedule = recording
prompts = [f"{n % 2} " * 60 + f"Item {n}:" for n in range(8)]
outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
print(json.dumps({
    "tokens": [list(o.outputs[0].token_ids) for o in outputs],
    "admitted": admitted,
    "class": type(scheduler).__qualname__,
    "options": sorted(set(parser._option_string_actions) - {"--scheduler"}),
    "has_option": "--scheduler" in parser._option_string_actions,
    "defaults": {k: repr(v) for k, v in sorted(vars(parser.parse_args([])).items())},
}))
"""


def test_installed_but_not_selected_the_plugin_changes_nothing(smollm2) -> None:
    """Tokens, order of admission and options of a stock run, without and with the plugin."""
    runs = []
    for plugins in ({"VLLM_PLUGINS": ""}, {}):
        environment = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"} | plugins
        done = subprocess.run(
            [sys.executable, "-c", STOCK_RUN, smollm2],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    without, with_plugin = runs
    assert (without.pop("has_option"), with_plugin.pop("has_option")) == (False, True)
    assert with_plugin == without
    assert without["admitted"] == list(range(8)) and without["class"] == "Scheduler"
