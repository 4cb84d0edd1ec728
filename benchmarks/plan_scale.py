# SPDX-License-Identifier: Apache-2.0
"""How long `vllm-batchllm plan` takes on a large file of text, and how much memory: both of a process of its own.

python benchmarks/plan_scale.py --lines 500000 --bytes 8000 --out benchmarks/results/plan
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

WORDS = [f"{stem}{end}" for stem in ("plan", "read", "warm", "north", "letter", "stone") for end in
         ("", "s", "ed", "ing", "er", "ly", " of", " to the", " and", ". The", ", which", " in a")]  # fmt: skip


def main(
    lines: Annotated[int, typer.Option(min=2)] = 100_000,
    num_bytes: Annotated[int, typer.Option("--bytes", help="Of each prompt.", min=100)] = 8_000,
    group: Annotated[int, typer.Option(help="Prompts that share a document.", min=1)] = 20,
    shared: Annotated[float, typer.Option(help="Share of each that is the document.")] = 0.9,
    model: Annotated[
        str, typer.Option(help="Tokenizer; without one, one of 4,000 words is trained.")
    ] = "",
    kv_tokens: Annotated[
        int, typer.Option(help="KV cache that is simulated; 0 for none.")
    ] = 400_000,
    folder: Annotated[Path | None, typer.Option(help="Where the file is made for a while.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for plan_scale.json and .md.")] = None,
    beside: Annotated[str, typer.Option(help="What else ran, for the record.")] = "",
) -> None:
    """Make the file, plan it, measure."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / "prompts.jsonl"
        write_prompts(path, lines, num_bytes, group, shared)
        name = model or train_tokenizer(Path(made) / "tokenizer")
        options = ["--kv-tokens", str(kv_tokens)] if kv_tokens else []
        result = measured([str(path), "--model", name, "--json", *options])
        file_bytes = path.stat().st_size
    num_groups = -(-lines // group)
    record = {
        "lines": lines,
        "bytes": num_bytes,
        "file_bytes": file_bytes,
        "shared_text_ratio": shared * (1 - num_groups / lines),
        "cpus": os.cpu_count(),
        "beside": beside,
        **result,
    }
    print(json.dumps(record, indent=1))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "plan_scale.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "plan_scale.md").write_text(page(record))


def write_prompts(path: Path, lines: int, num_bytes: int, group: int, shared: float) -> None:
    """Documents that `group` prompts share, shuffled; memory holds a seed for each line only."""
    places = [number // group for number in range(lines)]
    random.Random(0).shuffle(places)
    num_document = int(num_bytes * shared)
    with path.open("w") as file:
        for number, document in enumerate(places):
            text = words(document, num_document) + words(10**9 + number, num_bytes - num_document)
            file.write(json.dumps({"prompt": text, "max_tokens": 100}) + "\n")


@functools.cache
def pool() -> str:
    """Text to cut pieces from."""
    return " ".join(random.Random(0).choices(WORDS, k=400_000))


def words(seed: int, num_bytes: int) -> str:
    """Text of so many bytes that belongs to the seed."""
    generator, text = random.Random(seed), pool()
    starts = (int(generator.random() * (len(text) - 200)) for _ in range(-(-num_bytes // 200)))
    return "".join(text[start : start + 200] for start in starts)[:num_bytes]


def train_tokenizer(folder: Path) -> str:
    """A byte-level BPE of 4,000 words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([words(seed, 20_000) for seed in range(20)], vocab_size=4_000)
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    return str(folder)


def measured(arguments: list[str]) -> dict[str, Any]:
    """Seconds, peak memory and figures of the command in a process of its own."""
    code = "from vllm_batchllm.cli import main; main()"
    command = [sys.executable, "-c", code, "plan", *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    plan = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": seconds, "peak_rss_bytes": peak, "plan": {**plan, "groups": []}}


def page(record: dict[str, Any]) -> str:
    """The record for readers."""
    plan = record["plan"]
    beside = f"; {record['beside']}" if record["beside"] else ""
    return (
        "# `vllm-batchllm plan` on a large file\n\n"
        f"{record['lines']:,} prompts of {record['bytes']:,} bytes ({record['file_bytes'] / 1e9:.1f} GB), "
        f"{record['cpus']} cores{beside}. `python benchmarks/plan_scale.py --lines {record['lines']} --bytes {record['bytes']}`\n\n"
        "| seconds | peak memory | saving, estimated | of the text |\n| ---: | ---: | ---: | ---: |\n"
        f"| {record['seconds']:.0f} | {record['peak_rss_bytes'] / 1e9:.2f} GB | "
        f"{plan['optimal_saved_ratio']:.1%} ± {plan['ratio_error'] or 0:.2%} | {record['shared_text_ratio']:.1%} |\n"
    )


if __name__ == "__main__":
    typer.run(main)
