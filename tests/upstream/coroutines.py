# SPDX-License-Identifier: Apache-2.0
"""Tests and fixtures that are coroutines, all on one event loop.

vLLM's suite brings a plugin for them, pytest-asyncio, which this project does not install. Its
tests need of it the marker, which the loop here makes needless, and fixtures.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The loop of this process."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    return made


def run(test: pytest.Function) -> None:
    """Run ``test``, which is a coroutine function, with the fixtures it asks for."""
    wanted = {name: test.funcargs[name] for name in test._fixtureinfo.argnames}
    loop().run_until_complete(test.obj(**wanted))


def fixture(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``pytest_asyncio.fixture``: ``pytest.fixture`` for coroutines and asynchronous generators."""
    if function is None:
        return functools.partial(fixture, **options)
    options.pop("loop_scope", None)
    return pytest.fixture(**options)(_made_synchronous(function))


def _made_synchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            source = function(*args, **kwargs)
            yield loop().run_until_complete(anext(source))
            loop().run_until_complete(anext(source, None))

        return generator
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def coroutine(*args: Any, **kwargs: Any) -> Any:
            return loop().run_until_complete(function(*args, **kwargs))

        return coroutine
    return function
