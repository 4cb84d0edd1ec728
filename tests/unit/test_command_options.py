# SPDX-License-Identifier: Apache-2.0
"""The table of all commands and their options: the same name means the same, or is an exception that is listed."""

from __future__ import annotations

import inspect
import types
import typing
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from typer.models import OptionInfo

from vllm_batchllm.cli import app
from vllm_batchllm.jobs.options import _add_ours

Meaning = tuple[str, str]
"""The help of an option, and its type, None left out."""

OTHERWISE = {
    ("plan", "--model"): "needed, and only for its tokenizer",
    ("plan", "--device"): "for its KV cache alone, and never the machine at hand",
    ("doctor", "--quick"): "no measurement at all, where bench makes a short one",
    ("simulate", "--model"): "shapes by name: nothing is loaded",
    ("plan", "--kv-blocks"): "usable ones, and only for a comparison",
    ("run", "--report"): "of a job, which is no result yet",
    ("run", "--replicas"): "placed by Ray, not simulated",
}
"""What means another thing in one command, and why it may."""


def options_of(command: Any) -> Iterator[tuple[str, Meaning]]:
    """The options of a command of typer's."""
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if not hasattr(hint, "__metadata__"):
            continue
        kind, info = typing.get_args(hint)[:2]
        if isinstance(info, OptionInfo):
            named = [name for name in info.param_decls or () if name.startswith("--")]
            name = named[0] if named else f"--{parameter.name.replace('_', '-')}"
            yield name, (str(info.help), type_name(kind))


def type_name(kind: Any) -> str:
    """`int` for `int` and `int | None`."""
    if isinstance(kind, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    return str(kind) if typing.get_args(kind) else kind.__name__


def options_of_run() -> Iterator[tuple[str, Meaning]]:
    parser = ArgumentParser(add_help=False)
    _add_ours(parser)
    for action in parser._actions:
        if action.option_strings:
            kind = "bool" if action.nargs == 0 else type_name(action.type or str)
            yield action.option_strings[0], (str(action.help), kind)


def table() -> dict[str, dict[str, Meaning]]:
    """Every option: what it means in each command that has it."""
    found: dict[str, dict[str, Meaning]] = defaultdict(dict)
    for command in app.registered_commands:
        own = options_of_run() if command.name == "run" else options_of(command.callback)
        for option, meaning in own:
            found[option][str(command.name)] = meaning
    return found


TABLE = table()


def test_the_table_knows_the_commands() -> None:
    commands = {command for by_command in TABLE.values() for command in by_command}
    assert commands == {
        *("plan", "bench", "simulate", "calibrate", "run", "status", "arrange", "release", "doctor")
    }
    assert len(TABLE) > 60


@pytest.mark.parametrize("option", sorted(TABLE))
def test_an_option_means_the_same_in_all_commands(option: str) -> None:
    by_command = TABLE[option]
    same = {
        command: meaning
        for command, meaning in by_command.items()
        if (command, option) not in OTHERWISE
    }
    assert len(set(same.values())) <= 1, same


def test_exceptions_are_exceptions() -> None:
    for command, option in OTHERWISE:
        others = {name: one for name, one in TABLE[option].items() if name != command}
        assert others and TABLE[option][command] not in others.values(), (command, option)
