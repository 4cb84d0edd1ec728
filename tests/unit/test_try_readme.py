# SPDX-License-Identifier: Apache-2.0
"""Every command of README is one that somebody tries."""

from __future__ import annotations

import ast

import pytest
import try_readme
from pip_runner import SetupError

TEXT = try_readme.README.read_text()


def test_every_command_of_readme_is_tried_or_run_elsewhere() -> None:
    found = try_readme.commands(TEXT)
    assert len(found) >= 7
    tried = [command for command in found if try_readme.trial_of(command) is not None]
    elsewhere = set(found) - set(tried)
    assert len(elsewhere) == len(try_readme.ELSEWHERE)
    assert {try_readme.trial_of(command) for command in tried} == set(try_readme.TRIALS.values())


def test_a_command_that_nobody_tries_is_named() -> None:
    with pytest.raises(SetupError, match="not tried: vllm-batchllm surprise"):
        try_readme.trial_of("vllm-batchllm surprise")


def test_comments_and_output_are_no_commands() -> None:
    text = "```console\n$ one two   # why\nsaid\n```\nprose\n```python\n$ no\n```\n"
    assert try_readme.commands(text) == ["one two"]
    assert try_readme.snippets(text) == ["$ no\n"]


def test_readmes_python_is_python() -> None:
    found = try_readme.snippets(TEXT)
    assert found and all(ast.parse(one) for one in found)
