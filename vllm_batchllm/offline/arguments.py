# SPDX-License-Identifier: Apache-2.0
"""What a user gives to ``LLM``: our options put where the scheduler finds them, folders checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER, is_ours
from vllm_batchllm.config import SECTION, BatchLLMConfig


def check_model_folder(model: str, hf_config_path: str | None = None) -> None:
    """Refuse a model path that cannot be a model folder, before vLLM takes it for a hub name.

    hf_config_path: where vLLM looks for the model's config instead, if anywhere.

    Raises:
        ValueError: names the folder, what is wrong with it, and the way out.
    """
    folder = Path(model)
    if not (folder.is_absolute() or model.startswith(".") or folder.exists()):
        return
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        if folder.suffix == ".gguf" and folder.is_file():
            return
        raise ValueError(f"model folder {model!r} {problem}; give a folder or a hub name")
    if hf_config_path is None and not any(
        (folder / name).exists() for name in ("config.json", "params.json")
    ):
        raise ValueError(
            f"model folder {model!r} has no config.json, so it is no model or only half converted; "
            "convert or download it again"
        )


def put_options(
    batchllm: BatchLLMConfig | Mapping[str, Any] | None, kwargs: dict[str, Any]
) -> BatchLLMConfig:
    """Choose our scheduler in ``kwargs`` and put our options where it finds them.

    Raises:
        ValueError: another scheduler, options given twice, or a bad option.
    """
    scheduler_cls = kwargs.get("scheduler_cls")
    if scheduler_cls is None:
        kwargs["scheduler_cls"] = BATCHLLM_SCHEDULER
    elif not is_ours(scheduler_cls):
        raise ValueError(
            f"vllm_batchllm.LLM runs its own scheduler, got scheduler_cls={scheduler_cls!r}; "
            "leave it out, or use vllm.LLM"
        )
    additional = dict(kwargs.get("additional_config") or {})
    if batchllm is not None and SECTION in additional:
        raise ValueError(
            f"batchllm options were given twice: LLM(batchllm=...) and "
            f"additional_config[{SECTION!r}]; leave one out"
        )
    config = BatchLLMConfig.parse(additional.get(SECTION) if batchllm is None else batchllm)
    kwargs["additional_config"] = additional | {SECTION: config.to_dict()}
    return config
