# SPDX-License-Identifier: Apache-2.0
"""The random model is generated once, loads, and says different things to different prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from vllm_batchllm.bench import random_model as module
from vllm_batchllm.bench.random_model import RandomModelSpec, random_model
from vllm_batchllm.errors import UsageError

SMALL = RandomModelSpec(hidden_size=64, num_layers=2, intermediate_size=128, vocab_size=256)


def test_the_folder_is_made_once_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_model(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    monkeypatch.setattr(module, "_write_model", None)  # a second generation would fail
    assert random_model(tmp_path, SMALL) == folder


def test_every_figure_of_the_shape_is_in_the_folder_name() -> None:
    assert SMALL.folder_name != RandomModelSpec().folder_name
    assert RandomModelSpec(seed=1).folder_name != RandomModelSpec().folder_name


def test_a_failed_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, spec: RandomModelSpec) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_model", fail)
    with pytest.raises(KeyboardInterrupt):
        random_model(tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / SMALL.folder_name).mkdir()
    (tmp_path / SMALL.folder_name / "config.json").write_text("{")
    folder = random_model(tmp_path, SMALL)
    assert (folder / "model.safetensors").is_file()


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file.*--model"):
        random_model(tmp_path / "file", SMALL)


def test_the_seed_fixes_the_weights(tmp_path: Path) -> None:
    weights = [
        (random_model(tmp_path / name, SMALL) / "model.safetensors").read_bytes() for name in "ab"
    ]
    assert weights[0] == weights[1]


def test_outputs_vary_with_the_prompt_and_do_not_repeat_one_token(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_model(tmp_path))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(8, 4096, (8, 24), generator=generator)
    outputs = model.generate(prompts, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    produced = [tuple(row) for row in outputs[:, 24:].tolist()]
    assert len(set(produced)) == 8
    assert all(len(set(row)) > 6 for row in produced)


def test_outputs_depend_on_distant_prompt_tokens(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_model(tmp_path))
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(8, 4096, (1, 64), generator=generator)
    changed = prompt.clone()
    changed[0, :32] = torch.randint(8, 4096, (32,), generator=generator)
    one, other = (
        model.generate(p, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, 64:]
        for p in (prompt, changed)
    )
    assert one.tolist() != other.tolist()
