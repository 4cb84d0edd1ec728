# SPDX-License-Identifier: Apache-2.0
"""A part of a batch shares as the whole does, where the first lines do not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from plan_model import save_model, write_lines
from test_plan_large import grouped, prompts

from vllm_batchllm.input.text_table import text_table
from vllm_batchllm.prefix.best_saving import optimal_saving
from vllm_batchllm.workloads.sample import sample_by_group, sample_of_table
from vllm_batchllm.workloads.sources import InputOptions, load_batch


class TestSamples:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_a_sample_shares_as_the_whole_does(self, seed: int) -> None:
        draw = random.Random(seed)
        made: list[list[int]] = []
        while len(made) < 50_000:
            prefix = [draw.randrange(50_000) for _ in range(draw.randint(60, 120))]
            for _ in range(int(min(300, draw.paretovariate(1.0)))):
                made.append([*prefix, *(draw.randrange(50_000) for _ in range(8))])
        draw.shuffle(made)
        whole = optimal_saving(made, 16).saved_ratio
        chosen = sample_by_group(made, 3000, seed)
        assert len(chosen) == 3000 and chosen == sorted(set(chosen))
        sampled = optimal_saving([made[index] for index in chosen], 16).saved_ratio
        first = optimal_saving(made[:3000], 16).saved_ratio
        assert sampled == pytest.approx(whole, abs=0.015)
        assert first < whole - 0.1, "the first lines say little"

    def test_few(self) -> None:
        alike = [[1, 2, 3]] * 10
        assert sample_by_group(alike, 20, 0) == list(range(10))
        assert len(sample_by_group(alike, 3, 0)) == 3
        assert sample_by_group([], 3, 0) == []

    def test_on_text_and_in_simulate(self, tmp_path: Path) -> None:
        model = save_model(tmp_path / "model")
        texts = grouped(100, 10, 320, 32)
        file = write_lines(tmp_path / "b.jsonl", prompts(texts))
        chosen = sample_of_table(text_table(file), 100, 0)
        assert len(chosen) == 100 and len({texts[index][:320] for index in chosen}) <= 12
        batch = load_batch(str(file), InputOptions(num_requests=100, tokenizer=model))
        assert batch.num_requests == 100
        assert "100 of 1,000 requests (10.0%)" in batch.description
        assert optimal_saving(batch.prompts, 16).saved_ratio > 0.75
