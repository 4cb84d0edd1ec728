# SPDX-License-Identifier: Apache-2.0
"""Run a script of this folder in a process of its own, where engines of other tests have left nothing.

vLLM keeps process groups for the life of a process, and makes those for experts only if the first model has any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_alone(script: str, model: str, load: Any, folder: Path, **environment: str) -> Any:
    """What ``script MODEL LOAD.json RESULT.json`` has written; fails with its last words if it wrote nothing."""
    load_file, result = folder / "load.json", folder / "result.json"
    load_file.write_text(json.dumps(load))
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, str(HERE / script), model, str(load_file), str(result)],
        env=os.environ | environment | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.exists(), ended.stderr[-3000:]
    return json.loads(result.read_text())
