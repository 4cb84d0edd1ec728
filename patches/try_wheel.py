# SPDX-License-Identifier: Apache-2.0
"""Install a wheel into an environment of its own, and use it there from an empty folder: a step of `make dist`.

The environment sees vLLM and all else in `.venv` but our editable install, which hides what a wheel lacks: its folder is
named in a `.pth` file, and files of that kind are not read in a folder that is itself named so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from pip_runner import SetupError

SHARED = "shared.pth"
LOOK = """
import importlib.metadata as metadata, sys
import vllm_batchllm
from vllm_batchllm import LLM, create_scheduler
assert vllm_batchllm.__file__.startswith(sys.prefix), vllm_batchllm.__file__
(entry,) = {e for e in metadata.entry_points(group="vllm.general_plugins") if e.name == "batchllm"}
assert entry.load().__code__.co_filename.startswith(sys.prefix)
assert LLM and create_scheduler
"""
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
}


def make_environment(folder: Path) -> Path:
    """An environment without pip; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


def install(wheel: Path, python: Path) -> None:
    """Install the wheel, then let the environment see what `.venv` holds.

    In this order: pip would take the editable install for an older one, and remove it.
    """
    target = ["--python", str(python), "install", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *target]
    subprocess.run([*command, str(wheel)], check=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = python.parent.parent / "lib" / version / "site-packages"
    (site / SHARED).write_text(sysconfig.get_paths()["purelib"] + "\n")


def use(python: Path, folder: Path) -> None:
    """Run what a user would run first, in ``folder``.

    Raises:
        SetupError: one of them fails; the text says which, and its last words.
    """
    batch, model = folder / "batch.jsonl", folder / "tokenizer"
    shared = list(range(1, 65))
    batch.write_text("".join(json.dumps({"prompt": [*shared, n]}) + "\n" for n in range(4)))
    model.mkdir()
    (model / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (model / "tokenizer_config.json").write_text(json.dumps(kind))
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    command = str(python.parent / "vllm-batchllm")
    simulate = ["simulate", "micro-2000-200-d16", "--num-requests", "20"]
    for words, wanted in (
        ([command, "--version"], "."),
        ([command, "--help"], "plan"),
        ([command, "plan", str(batch), "--model", str(model), "--json"], "4"),
        ([command, *simulate], "batchllm"),
        ([str(python), "-c", LOOK], ""),
    ):
        _run(words, wanted, folder)


def _run(words: Sequence[str], wanted: str, folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    shown = " ".join([Path(words[0]).name, *(word.strip().split("\n")[0] for word in words[1:])])
    if done.returncode != 0 or wanted not in done.stdout:
        last = (done.stdout + done.stderr).strip()[-1500:]
        raise SetupError(f"the installed wheel fails at `{shown}`:\n{last}")
    print(f"  {shown}: fine", flush=True)
