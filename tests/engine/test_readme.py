# SPDX-License-Identifier: Apache-2.0
"""README's commands from the wheel beside vLLM, as a new user would run them. `make dist` has tried the wheel by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import make_dist
import pytest
import try_readme
import try_wheel


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_readmes_commands_one_by_one_from_the_wheel(smollm2: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wheel, _ = make_dist.build(make_dist.tools(make_dist.ROOT), make_dist.ROOT, out)
    python = try_wheel.make_environment(tmp_path / "fresh")
    try_wheel.install(wheel, python)
    vllm = python.parent / "vllm"  # what pip would have made of vLLM's entry point there
    vllm.write_text(
        f"#!{python}\nimport sys\nfrom vllm.entrypoints.cli.main import main\nsys.exit(main())\n"
    )
    vllm.chmod(0o755)
    place = tmp_path / "work"
    place.mkdir()
    trial = try_readme.Trial(python.parent, Path(smollm2), place)
    where = trial.run([str(python), "-c", "import vllm_batchllm as b; print(b.__file__)"])
    assert str(python.parent.parent) in where, f"not the wheel's: {where}; {sys.prefix}"
    try_readme.try_all(trial, try_readme.README.read_text())
