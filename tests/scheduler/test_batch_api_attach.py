# SPDX-License-Identifier: Apache-2.0
"""The Batch API on vLLM's command line and app: there with its flag, and nothing changed without it."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.launchers import app as vllm_app
from vllm.entrypoints.launchers.run_batch import make_arg_parser as run_batch_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_moved import serve_parser

from vllm_batchllm.batch_api import attach
from vllm_batchllm.batch_api.endpoints import BatchEndpoints, open_store
from vllm_batchllm.batch_api.options import BatchOptions
from vllm_batchllm.batch_api.server_work import served_models
from vllm_batchllm.errors import UsageError
from vllm_batchllm.plugin import register

ON = ["--scheduler", "batchllm", "--enable-batch-api", "--batch-dir"]


@pytest.fixture(autouse=True)
def loaded() -> None:
    register()


def parse(*words: str) -> argparse.Namespace:
    """What ``vllm serve`` makes of these; words as a shell gives them, equal to no constant by identity."""
    told = ["".join(list(word)) for word in words]
    return serve_parser(FlexibleArgumentParser()).parse_args(told)


def test_only_the_server_has_the_options() -> None:
    assert parse().enable_batch_api is False
    parsers = (
        AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()),
        run_batch_parser(FlexibleArgumentParser()),
    )
    for parser in parsers:
        assert "--enable-batch-api" not in parser._option_string_actions


def test_registering_again_changes_nothing() -> None:
    before = EngineArgs.add_cli_args, vllm_app.attach_endpoint_plugins
    register()
    assert (EngineArgs.add_cli_args, vllm_app.attach_endpoint_plugins) == before


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ([], "fcfs"),
        ([*ON, "d"], "priority"),
        (["--scheduling-policy", "fcfs", *ON, "d"], "fcfs"),
        ([*ON, "d", "--scheduling-policy=fcfs"], "fcfs"),
        ([*ON, "d", "--scheduling-policy", "priority"], "priority"),
    ],
)
def test_interactive_comes_first_unless_the_user_chose(words, policy) -> None:
    args = parse(*words)
    assert args.scheduling_policy == policy and type(args.scheduling_policy) is str


REFUSED = {
    "scheduler": (["--enable-batch-api", "--batch-dir", "d"], "add --scheduler batchllm"),
    "stock": ([*ON, "d", "--scheduler", "stock"], "add --scheduler batchllm"),
    "folder": (ON[:-1], "add --batch-dir DIR"),
    "headless": ([*ON, "d", "--headless"], "--headless"),
    "grpc": ([*ON, "d", "--grpc"], "--grpc"),
    "number": ([*ON, "d", "--batch-concurrency", "0"], "'0' is not a whole number from 1 on"),
    "stray": (["--batch-dir", "d"], "--batch-dir does nothing without --enable-batch-api"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(name, capsys) -> None:
    words, message = REFUSED[name]
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_without_sqlalchemy_it_says_what_to_install(capsys, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else find(name)
    )
    with pytest.raises(SystemExit):
        parse(*ON, "d")
    assert "SQLAlchemy: pip install vllm-batchllm[batch-api]" in capsys.readouterr().err
    assert parse().enable_batch_api is False


def test_vllms_rust_front_end_is_refused(capsys, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(SystemExit):
        parse(*ON, "d")
    assert "VLLM_USE_RUST_FRONTEND" in capsys.readouterr().err


def built(*words: str, taken: bool = False) -> FastAPI:
    """An app as vLLM builds it up to the endpoint plugins, and its check of keys behind them."""
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    app = FastAPI()
    app.state.args = parse(*words)
    if taken:
        router = APIRouter()
        router.add_api_route("/v1/batches", lambda: "vLLM's own", methods=["GET"])
        app.include_router(router)
    vllm_app.attach_endpoint_plugins(app, ("generate",))
    app.add_middleware(AuthenticationMiddleware, tokens=["key"])
    return app


def paths(app: FastAPI) -> set[str]:
    return {path for path in app.openapi()["paths"]}


def test_without_the_flag_nothing_is_attached_or_said(heard) -> None:
    app = built()
    assert not paths(app) and app.state.endpoint_plugins == []
    assert not [record for record in heard.records if "batch" in record.getMessage().lower()]


def test_with_the_flag_routes_are_behind_vllms_check_of_keys(tmp_path) -> None:
    app = built(*ON, str(tmp_path))
    assert {"/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel"} <= paths(app)
    (plugin,) = app.state.endpoint_plugins
    assert isinstance(plugin, BatchEndpoints)
    client = TestClient(app)
    for path in ("/v1/files", "/v1/batches", "/v1/files/file-1/content"):
        assert client.get(path).status_code == 401
    answer = client.get("/v1/batches", headers={"authorization": "Bearer key"})
    assert answer.json()["data"] == []


def test_where_vllm_has_batches_ours_stand_back_with_one_line(tmp_path, heard) -> None:
    app = built(*ON, str(tmp_path), taken=True)
    assert paths(app) == {"/v1/batches"} and app.state.endpoint_plugins == []
    said = [record.getMessage() for record in heard.records if "stands back" in record.getMessage()]
    assert len(said) == 1 and "/v1/batches" in said[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "below"
    with pytest.raises(UsageError, match=r"--batch-dir .*file/below cannot be used"):
        open_store(BatchOptions(folder, "sqlite://"))


def test_further_processes_join_without_a_command_line(monkeypatch) -> None:
    """They unpickle it; the plugin is loaded when their engine's arguments are made."""
    stock = vllm_app.attach_endpoint_plugins.__wrapped__
    monkeypatch.setattr(vllm_app, "attach_endpoint_plugins", stock)
    attach.register()
    assert hasattr(vllm_app.attach_endpoint_plugins, "batch_api_wrapped")


class FakeEngine:
    """An engine client as far as the Batch API looks at it."""

    def __init__(self) -> None:
        self.errored, self.ended = False, list[str]()
        scheduler = SimpleNamespace(policy="priority", max_num_seqs=4)
        cache = SimpleNamespace(num_gpu_blocks=8, block_size=16)
        parallel = SimpleNamespace(data_parallel_size=1)
        self.vllm_config = SimpleNamespace(
            scheduler_config=scheduler, cache_config=cache, parallel_config=parallel
        )

    def shutdown(self, timeout: float | None = None) -> None:
        self.ended.append(f"engine, {timeout}")


def test_the_runner_ends_before_the_engine(tmp_path, monkeypatch) -> None:
    engine = FakeEngine()
    plugin = BatchEndpoints(BatchOptions(tmp_path, "sqlite:///" + str(tmp_path / "db")))
    monkeypatch.setattr("vllm_batchllm.batch_api.endpoints._metrics", metrics)

    async def go() -> None:
        state = SimpleNamespace(engine_client=engine, args=SimpleNamespace())
        await plugin.init_state(engine, state, argparse.Namespace())
        await asyncio.sleep(0.2)
        assert plugin._task is not None
        plugin._task.add_done_callback(lambda _: engine.ended.append("runner"))
        await asyncio.get_running_loop().run_in_executor(None, lambda: engine.shutdown(timeout=3))

    asyncio.run(go())
    assert engine.ended == ["runner", "engine, 3"]


def metrics() -> Any:
    from prometheus_client import CollectorRegistry

    from vllm_batchllm.batch_api.metrics import BatchMetrics

    return BatchMetrics(CollectorRegistry())


def test_models_that_are_served_are_those_of_the_server_now() -> None:
    base = SimpleNamespace(name="base")
    models = SimpleNamespace(base_model_paths=[base], lora_requests={}, lora_resolvers=[])
    state: Any = SimpleNamespace(openai_serving_models=models)
    assert served_models(state) == {"base"}
    models.lora_requests["adapter"] = object()
    assert served_models(state) == {"base", "adapter"}
    models.lora_resolvers.append(object())
    assert served_models(state) is None, "an adapter may be found when it is asked for"
