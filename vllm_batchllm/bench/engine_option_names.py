# SPDX-License-Identifier: Apache-2.0
"""Names of the options that vLLM's engine takes, read from its source: importing it takes seconds, a typing error should not."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

WHERE, CLASS = Path("engine", "arg_utils.py"), "EngineArgs"


def engine_option_names() -> list[str] | None:
    """The fields of vLLM's ``EngineArgs``, in order; None where they are not found, so that vLLM itself has to be asked."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse((Path(spec.origin).parent / WHERE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == CLASS:
            return _fields(node) or None
    return None


def _fields(node: ast.ClassDef) -> list[str]:
    return [
        line.target.id
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and "ClassVar" not in ast.unparse(line.annotation)
    ]
