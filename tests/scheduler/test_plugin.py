# SPDX-License-Identifier: Apache-2.0
"""``--scheduler`` on vLLM's own command lines, and nothing changed without it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import make_vllm_config
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.launchers.run_batch import make_arg_parser as run_batch_parser
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core.sched.scheduler import Scheduler
from vllm_moved import serve_parser

from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER, is_ours
from vllm_batchllm.plugin import registration
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler
from vllm_batchllm.scheduler.settings import config_of


@pytest.fixture(autouse=True)
def loaded() -> None:
    load_general_plugins()
    registration.register()


def parser() -> FlexibleArgumentParser:
    return AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())


def test_the_entry_point_is_found_by_vllm() -> None:
    assert hasattr(EngineArgs.add_cli_args, "batchllm_wrapped")


@pytest.mark.parametrize("make", [parser, lambda: run_batch_parser(FlexibleArgumentParser())])
def test_scheduler_by_name(make) -> None:
    common = ["-i", "a", "-o", "b"] if make is not parser else []
    args = make().parse_args([*common, "--scheduler", "batchllm"])
    assert args.scheduler_cls == BATCHLLM_SCHEDULER
    assert make().parse_args([*common, "--scheduler", "stock"]).scheduler_cls is None


def test_bench_throughput_takes_the_option() -> None:
    from vllm.benchmarks.throughput import add_cli_args

    bench = FlexibleArgumentParser()
    add_cli_args(bench)
    args = bench.parse_args(["--scheduler=batchllm"])
    assert args.scheduler_cls == BATCHLLM_SCHEDULER


def test_serve_takes_the_option() -> None:
    args = serve_parser(FlexibleArgumentParser()).parse_args(["--scheduler", "batchllm"])
    assert args.scheduler_cls == BATCHLLM_SCHEDULER


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheduler", "lifo"], "unknown scheduler 'lifo'; known: batchllm, stock"),
        (["--scheduler", "batchllm", "--scheduler-cls", "a.B"], "not allowed with argument"),
        (["--scheduler-cls", "a.B", "--scheduler", "batchllm"], "not allowed with argument"),
    ],
)
def test_bad_choices_are_refused_in_words(words, message, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unsupported_vllm_is_named_when_chosen_and_stock_runs_go_on(capsys, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: "0.40.0")
    registration.register()
    assert parser().parse_args([]).scheduler_cls is None
    with pytest.raises(SystemExit):
        parser().parse_args(["--scheduler", "batchllm"])
    assert "vLLM 0.40.0 is installed" in capsys.readouterr().err


def test_registering_again_changes_nothing() -> None:
    before = EngineArgs.add_cli_args, EngineArgs.create_engine_config
    registration.register()
    assert (EngineArgs.add_cli_args, EngineArgs.create_engine_config) == before


def test_all_other_options_stay_as_stock_has_them() -> None:
    """The parser differs from vLLM's own in exactly one option."""
    stock = FlexibleArgumentParser()
    inspect.unwrap(EngineArgs.add_cli_args)(stock)
    ours = EngineArgs.add_cli_args(FlexibleArgumentParser())
    added = set(ours._option_string_actions) - set(stock._option_string_actions)
    assert added == {"--scheduler"}
    assert vars(ours.parse_args([])) == vars(stock.parse_args([]))
    assert vars(ours.parse_args(["--scheduler-cls", "a.B"])) == vars(
        stock.parse_args(["--scheduler-cls", "a.B"])
    )


def test_prefix_caching_off_is_refused_before_an_engine_starts(llama) -> None:
    def engine_args(**more):
        return EngineArgs(
            model=llama, skip_tokenizer_init=True, enable_prefix_caching=False, **more
        )

    with pytest.raises(ValueError, match=r"needs prefix caching.*--enable-prefix-caching"):
        engine_args(scheduler_cls=BATCHLLM_SCHEDULER).create_engine_config()
    assert engine_args().create_engine_config().scheduler_config.get_scheduler_cls() is Scheduler


def test_bad_options_are_refused_before_an_engine_starts(llama) -> None:
    args = EngineArgs(
        model=llama,
        skip_tokenizer_init=True,
        scheduler_cls=BATCHLLM_SCHEDULER,
        additional_config={"batchllm": {"order": "random"}},
    )
    with pytest.raises(ValueError, match="'order' = 'random' is not allowed; allowed: 'dfs'"):
        args.create_engine_config()


def test_a_vllm_without_scheduler_cls_keeps_its_commands() -> None:
    wrapped = registration._with_scheduler_option(lambda parser: parser)
    bare = FlexibleArgumentParser()
    assert wrapped(bare) is bare
    assert "--scheduler" not in bare._option_string_actions


def test_an_option_of_that_name_that_somebody_else_has_put_there_stays_theirs(caplog) -> None:
    """Another plugin's, or a later vLLM's: every `vllm serve` must still parse its command line."""

    def add_cli_args(parser: Any) -> Any:
        parser = inspect.unwrap(EngineArgs.add_cli_args)(parser)
        parser.add_argument("--scheduler", choices=["theirs", "none"], default="none")
        return parser

    parser = registration._with_scheduler_option(add_cli_args)(FlexibleArgumentParser())
    assert parser.parse_args(["--scheduler", "theirs"]).scheduler == "theirs"
    assert parser.parse_args(["--scheduler-cls", "some.Class"]).scheduler_cls == "some.Class"


class Subclassed(BatchLLMScheduler):
    """As a user would write one."""


def test_a_users_subclass_of_ours_is_checked_like_ours(llama) -> None:
    for cls in (Subclassed, f"{__name__}.Subclassed"):
        assert is_ours(cls)
        arguments = EngineArgs(
            llama, skip_tokenizer_init=True, scheduler_cls=cls, enable_prefix_caching=False
        )
        with pytest.raises(ValueError, match="needs prefix caching"):
            arguments.create_engine_config()
    assert not is_ours("no.such.module.Scheduler") and not is_ours(Scheduler) and not is_ours(None)


def test_diffusion_models_keep_the_scheduler_that_they_need(llama) -> None:
    config = make_vllm_config(llama)
    model = SimpleNamespace(model="some/diffusion", is_diffusion=True)
    stand_in = SimpleNamespace(
        additional_config={}, parallel_config=config.parallel_config, model_config=model
    )
    with pytest.raises(
        ValueError, match="does not serve diffusion models such as 'some/diffusion'"
    ):
        registration.check_config(stand_in)


def test_one_engine_is_not_asked_for_several() -> None:
    config = SimpleNamespace(
        additional_config={"batchllm": {"replicas": 2}},
        parallel_config=SimpleNamespace(distributed_executor_backend=None),
    )
    with pytest.raises(ValueError, match=r"'replicas' = 2 is for LLM alone.*--replicas"):
        config_of(config)
