# SPDX-License-Identifier: Apache-2.0
"""lm-evaluation-harness on a real model, stock vLLM against ours: values, scores, tokens, seconds.

    python benchmarks/lm_eval_ab.py models/SmolLM2-135M-Instruct --shots 5 --num-questions 60 --out result.json

Tasks are made from the docstrings of Python's standard library (which module is a function from?), so nothing is fetched.
Each arm is a process of its own: stock takes the questions as lm-evaluation-harness orders them, `sorted` has prefix order
by sorting its prompts. Needs the extra `lm-eval`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODULES = (
    "shutil",
    "statistics",
    "textwrap",
    "random",
    "inspect",
    "heapq",
    "difflib",
    "calendar",
    "ast",
    "os.path",
)
"""Where the questions come from."""

ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "seed": 0,
    "block_size": 32,
    "max_model_len": 2048,
}


def documents(num_questions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with four choices each."""
    rng = random.Random(seed)
    found = []
    for name in MODULES:
        for function, each in inspect.getmembers(importlib.import_module(name), inspect.isfunction):
            text = inspect.getdoc(each)
            if text and not function.startswith("_"):
                wrong = rng.sample([other for other in MODULES if other != name], 3)
                choices = rng.sample([name, *wrong], 4)
                found.append(
                    {
                        "question": " ".join(text.split()[:40]),
                        "choices": choices,
                        "answer": choices.index(name),
                    }
                )
    rng.shuffle(found)
    while len(found) < num_questions + 40:
        found += [one | {"question": f"In short: {one['question']}"} for one in found]
    return found[: num_questions + 40]


def task(folder: Path, kind: str, shots: int, num_questions: int) -> dict[str, Any]:
    """A task of lm-evaluation-harness on local files, as a mapping."""
    rows = documents(num_questions)
    for name, part in (("train", rows[:40]), ("test", rows[40:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    common = {
        "task": kind,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
        "metadata": {"version": 1},
    }
    question = "Which module is this function from? {{question}}\n"
    letters = "A. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\n"
    if kind == "letters":
        return common | {
            "output_type": "multiple_choice",
            "doc_to_text": question + letters + "Answer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "{{answer}}",
        }
    if kind == "names":
        return common | {
            "output_type": "multiple_choice",
            "doc_to_text": question + "Module:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
        }
    if kind == "generate":
        return common | {
            "output_type": "generate_until",
            "doc_to_text": question + "Module:",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "temperature": 0.0},
            "metric_list": [{"metric": "exact_match"}],
        }
    return common | {
        "output_type": "loglikelihood_rolling",
        "num_fewshot": 0,
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }


class Counted:
    """Prompt tokens, and those found in the cache, of every ``generate`` of an engine; sorts where asked."""

    def __init__(self, llm: Any, *, sort: bool) -> None:
        self.prompt_tokens = self.computed = 0
        self.seconds = 0.0
        self._generate, self._sort = llm.generate, sort
        llm.generate = self

    def __call__(self, prompts: list[Any], sampling_params: Any, **kwargs: Any) -> list[Any]:
        order = list(range(len(prompts)))
        params = (
            sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(order)
        )
        if self._sort:
            order.sort(key=lambda place: prompts[place]["prompt_token_ids"])
        start = time.perf_counter()
        outputs = self._generate([prompts[n] for n in order], [params[n] for n in order], **kwargs)
        self.seconds += time.perf_counter() - start
        for output in outputs:
            self.prompt_tokens += len(output.prompt_token_ids)
            self.computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        back: list[Any] = [None] * len(order)
        for place, output in zip(order, outputs, strict=True):
            back[place] = output
        return back


def run_arm(arm: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All tasks on one engine."""
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    import vllm_batchllm.lm_eval.engine_model  # noqa: F401 - registers

    engine = ENGINE | {"num_gpu_blocks_override": args.blocks}
    name = "vllm-batchllm" if arm == "ours" else "vllm"
    model = get_model(name)(args.model, **engine)
    found: dict[str, Any] = {}
    for kind in args.tasks:
        model.model.reset_prefix_cache()
        counted = Counted(model.model, sort=arm == "sorted")
        start = time.perf_counter()
        config = task(folder, kind, args.shots, args.num_questions)
        result = lm_eval.simple_evaluate(
            model, tasks=[config], task_manager=TaskManager(), log_samples=True, bootstrap_iters=0
        )
        assert result is not None
        model.model.generate = counted._generate
        found[kind] = {
            "scores": {
                key: value
                for key, value in result["results"][kind].items()
                if isinstance(value, float)
            },
            "values": [sample["resps"] for sample in result["samples"][kind]],
            "prompt_tokens": counted.prompt_tokens,
            "computed": counted.computed,
            "engine_s": counted.seconds,
            "whole_s": time.perf_counter() - start,
            "efficiency": model.model.report().reuse_efficiency if arm == "ours" else None,
        }
    return found


def largest_difference(ours: Any, stock: Any) -> float:
    """Between two nested lists of values; texts and truths must be equal."""
    if isinstance(ours, (list, tuple)):
        assert len(ours) == len(stock)
        return max(
            (largest_difference(a, b) for a, b in zip(ours, stock, strict=True)), default=0.0
        )
    if isinstance(ours, bool) or not isinstance(ours, (int, float)):
        assert ours == stock, (ours, stock)
        return 0.0
    return abs(ours - stock)


def main() -> None:
    """Run the arms one after the other and say what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--num-questions", type=int, default=60)
    parser.add_argument("--blocks", type=int, default=256, help="KV blocks of 32 tokens")
    parser.add_argument("--tasks", nargs="+", default=["letters", "names", "rolling", "generate"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--arm", choices=["stock", "sorted", "ours"], help="this one only, in this process"
    )
    args = parser.parse_args()
    folder = args.out.parent
    if args.arm:
        args.out.write_text(json.dumps(run_arm(args.arm, args, folder)))
        return
    arms = {}
    for arm in ("stock", "sorted", "ours"):
        file = args.out.with_suffix(f".{arm}.json")
        command = [sys.executable, *sys.argv, "--arm", arm, "--out", str(file)]
        subprocess.run(command, check=True)
        arms[arm] = json.loads(file.read_text())
    for kind in args.tasks:
        stock, in_order, ours = (arms[arm][kind] for arm in ("stock", "sorted", "ours"))
        difference = largest_difference(ours.pop("values"), stock.pop("values"))
        in_order.pop("values")
        ours["largest_difference"] = difference
        saved = 1 - ours["computed"] / stock["prompt_tokens"]
        print(
            f"{kind}: tokens {stock['computed']:,} stock, {in_order['computed']:,} sorted, {ours['computed']:,} ours "
            f"({saved:.1%} saved, efficiency {ours['efficiency']:.4f}); engine {stock['engine_s']:.1f} / "
            f"{in_order['engine_s']:.1f} / {ours['engine_s']:.1f} s; largest difference {difference:.1e}; "
            f"scores {'equal' if stock['scores'] == ours['scores'] else (stock['scores'], ours['scores'])}"
        )
    args.out.write_text(
        json.dumps({"shots": args.shots, "blocks": args.blocks, "arms": arms}, indent=1)
    )


if __name__ == "__main__":
    main()
