# SPDX-License-Identifier: Apache-2.0
"""vLLM's own client of several ranks, without processes: who is sent where, and what its books say afterwards."""

from __future__ import annotations

import copy
import inspect
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from ranks import route
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import DPLBAsyncMPClient

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.plugin import rank_choice
from vllm_batchllm.plugin.prompt_logprobs import mark_start
from vllm_batchllm.prefix.best_saving import optimal_saving
from vllm_batchllm.prefix.readable import START
from vllm_batchllm.workloads.catalog import make_workload

METHOD = "get_core_engine_for_request"
DOCUMENTS = [[number] * 512 for number in range(1, 9)]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this test only, twice, which must be as good as once."""
    monkeypatch.setattr(DPLBAsyncMPClient, METHOD, _stock_method())
    rank_choice.install()
    wrapped = getattr(DPLBAsyncMPClient, METHOD)
    rank_choice.install()
    assert getattr(DPLBAsyncMPClient, METHOD) is wrapped


def _stock_method() -> Any:
    method = getattr(DPLBAsyncMPClient, METHOD)
    return getattr(method, "__wrapped__", method)


def client(
    num_ranks: int = 2,
    scheduler: str | None = BATCHLLM_SCHEDULER,
    client_count: int = 1,
    client_index: int = 0,
    **options: Any,
) -> DPLBAsyncMPClient:
    """As vLLM's constructor leaves it, but for sockets and processes."""
    made = DPLBAsyncMPClient.__new__(DPLBAsyncMPClient)
    made.vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler),
        additional_config={"batchllm": options},
        parallel_config=SimpleNamespace(distributed_executor_backend="mp"),
    )
    made.client_count, made.client_index = client_count, client_index
    made.core_engines = [rank.to_bytes(2, "little") for rank in range(num_ranks)]
    made.lb_engines = [[0, 0, 0.0] for _ in range(num_ranks)]
    made.reqs_in_flight, made.engine_inflight = {}, Counter()
    made.streaming_reqs = set()  # vLLM 0.33
    made.eng_start_index = num_ranks * client_index // client_count
    return made


def request(name: str, tokens: list[int] | None, **fields: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        **{
            "request_id": name,
            "prompt_token_ids": tokens,
            "mm_features": None,
            "sampling_params": SamplingParams(max_tokens=1),
            "pooling_params": None,
            "arrival_time": 0.0,
            "lora_request": None,
            "cache_salt": None,
            "data_parallel_rank": None,
        }
        | fields
    )


def send(to: DPLBAsyncMPClient, name: str, tokens: list[int] | None, **fields: Any) -> int:
    """The rank that a request goes to. The request is afterwards as it was."""
    asked = request(name, tokens, **fields)
    before = copy.copy(asked)
    engine = to.get_core_engine_for_request(asked)
    assert asked == before
    assert to.reqs_in_flight[name] == engine
    return to.core_engines.index(engine)


def test_the_client_of_these_tests_holds_what_vllms_constructors_set() -> None:
    """Some attribute of it may be new in a later vLLM; none is of our invention."""
    classes = [each for each in DPLBAsyncMPClient.__mro__[:-1] if "__init__" in vars(each)]
    text = "".join(inspect.getsource(each.__init__) for each in classes)
    invented = {name for name in vars(client()) if not re.search(rf"self\.{name}\b.* = ", text)}
    assert invented <= {"streaming_reqs"}


def test_requests_go_to_the_rank_that_has_their_prefix() -> None:
    ours = client(4)
    homes = [send(ours, f"{n}", [*document, 1]) for n, document in enumerate(DOCUMENTS[:4])]
    assert sorted(homes) == [0, 1, 2, 3], "what is new goes where vLLM sends it"
    for question in range(2, 5):
        again = [
            send(ours, f"{n}, {question}", [*document, question])
            for n, document in enumerate(DOCUMENTS[:4])
        ]
        assert again == homes


@pytest.mark.parametrize("client_count", [1, 3])
def test_vllms_books_are_as_if_it_had_chosen_itself(client_count: int) -> None:
    ours, stock = client(client_count=client_count), client(scheduler=None)
    stock.client_count = client_count
    for number in range(12):
        send(ours, f"{number}", [*DOCUMENTS[number % 3], number])
        send(stock, f"{number}", [*DOCUMENTS[number % 3], number])
    assert ours.reqs_in_flight.keys() == stock.reqs_in_flight.keys()
    assert Counter(ours.reqs_in_flight.values()) == ours.engine_inflight
    waiting = [each[0] for each in ours.lb_engines]
    assert waiting == [client_count * ours.engine_inflight[each] for each in ours.core_engines]
    assert sum(waiting) == sum(each[0] for each in stock.lb_engines)


@pytest.mark.parametrize("scheduler", [None, "vllm.v1.core.sched.scheduler.Scheduler"])
def test_another_schedulers_client_is_left_alone(scheduler: str | None) -> None:
    assert_as_stock(client(scheduler=scheduler), DOCUMENTS * 4)


def test_it_can_be_switched_off() -> None:
    assert_as_stock(client(rank_affinity=False), DOCUMENTS * 4)


def test_with_nothing_shared_every_choice_is_vllms() -> None:
    assert_as_stock(client(3), [[number] * 300 for number in range(50)])


def assert_as_stock(ours: DPLBAsyncMPClient, prompts: list[list[int]]) -> None:
    """The same choices, and the same books, as by the method without ours in front."""
    stock = client(len(ours.core_engines), scheduler=None)
    choose = _stock_method()
    for number, prompt in enumerate(prompts):
        expected = choose(stock, request(f"{number}", prompt))
        assert ours.get_core_engine_for_request(request(f"{number}", prompt)) == expected
    assert ours.lb_engines == stock.lb_engines
    assert ours.eng_start_index == stock.eng_start_index


def test_a_rank_that_the_user_names_always_wins_and_is_remembered() -> None:
    ours = client()
    home = send(ours, "a", DOCUMENTS[0])
    assert send(ours, "b", DOCUMENTS[0], data_parallel_rank=1 - home) == 1 - home
    for number in range(3):
        assert send(ours, f"c{number}", DOCUMENTS[1], data_parallel_rank=1) == 1
    assert send(ours, "d", DOCUMENTS[1]) == 1


def test_a_rank_that_has_too_much_to_do_is_passed_over() -> None:
    ours = client()
    home = send(ours, "a", DOCUMENTS[0])
    ours.lb_engines = [[0, 0, 0.0], [0, 0, 0.0]]
    ours.lb_engines[home] = [30, 10, 0.9]  # other clients' requests
    assert send(ours, "b", DOCUMENTS[0]) == 1 - home


def test_a_request_in_flight_stays_where_it_is() -> None:
    ours = client()
    home = send(ours, "session", DOCUMENTS[0], resumable=True)
    assert send(ours, "other", DOCUMENTS[1]) == 1 - home
    assert send(ours, "session", DOCUMENTS[1], resumable=True) == home
    assert ours.engine_inflight[ours.core_engines[home]] == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_token_ids": None},
        {"prompt_token_ids": [-1] * 512},
        {"mm_features": ["an image"]},
        {"prompt_embeds": "embeddings"},
        {"resumable": True},
        {"sampling_params": None, "pooling_params": SimpleNamespace(late_interaction_params=None)},
        {"sampling_params": SamplingParams(prompt_logprobs=1)},
    ],
    ids=[
        "no tokens",
        "no ids",
        "image",
        "embeddings",
        "session",
        "pooling",
        "all log-probabilities",
    ],
)
def test_where_a_prompt_is_not_known_by_its_tokens_vllm_chooses(fields: dict[str, Any]) -> None:
    assert rank_choice.readable_path(request("a", DOCUMENTS[0])).hashes
    made = {"tokens": fields.pop("prompt_token_ids", DOCUMENTS[0]), **fields}
    assert not rank_choice.readable_path(request("a", **made)).hashes
    assert {send(client(), "a", **made), send(client(), "b", **made)} == {0}


def test_prompt_logprobs_with_a_start_share_what_lies_before_it() -> None:
    params = SamplingParams(prompt_logprobs=1, extra_args={START: 257})
    asked = request("a", DOCUMENTS[0], sampling_params=params)
    mark_start(asked)
    assert list(rank_choice.readable_path(asked).hashes) == list(
        rank_choice.readable_path(request("b", DOCUMENTS[0][:256])).hashes
    )


def test_adapters_and_salts_keep_prompts_apart() -> None:
    adapters = [LoRARequest(name, 1, "nowhere") for name in ("a", "b")]
    apart = [
        {},
        {"cache_salt": "a"},
        {"lora_request": adapters[0]},
        {"lora_request": adapters[1]},
        {"lora_request": adapters[0], "cache_salt": "a"},
    ]
    paths = [rank_choice.readable_path(request("a", DOCUMENTS[0], **each)) for each in apart]
    assert len({path.hashes[-1] for path in paths}) == len(apart)


def test_several_api_servers_agree_without_talking() -> None:
    clients = [client(4, client_count=4, client_index=index) for index in range(4)]
    for number, document in enumerate(DOCUMENTS):
        for each in clients:  # idle again, as the ranks report
            each.lb_engines = [[0, 0, 0.0] for _ in range(4)]
            each.engine_inflight.clear()
        assert len({send(each, f"{number}", document) for each in clients}) == 1


def test_ranks_may_come_and_go() -> None:
    ours = client(2)
    send(ours, "a", DOCUMENTS[0])
    ours.core_engines.append(b"\x02\x00")  # vLLM adds to the loads later
    send(ours, "b", DOCUMENTS[0])
    assert send(ours, "c", DOCUMENTS[0], data_parallel_rank=2) == 2
    ours.lb_engines = [*ours.lb_engines, [0, 0, 0.0]]
    assert send(ours, "d", DOCUMENTS[1], data_parallel_rank=2) == 2
    assert send(ours, "e", DOCUMENTS[1]) == 2
    ours.core_engines, ours.lb_engines = ours.core_engines[:2], ours.lb_engines[:2]
    assert send(ours, "f", DOCUMENTS[1]) in (0, 1)


async def _finish(ours: DPLBAsyncMPClient, name: str) -> None:
    await DPLBAsyncMPClient.process_engine_outputs(
        ours, EngineCoreOutputs(finished_requests={name})
    )


def test_a_finished_request_leaves_vllms_books() -> None:
    import asyncio

    ours = client()
    home = send(ours, "a", DOCUMENTS[0])
    assert send(ours, "b", DOCUMENTS[0]) == home
    asyncio.run(_finish(ours, "b"))
    assert ours.engine_inflight[ours.core_engines[home]] == 1
    assert "b" not in ours.reqs_in_flight


@pytest.mark.parametrize(("num_servers", "most_twice"), [(1, 0.1), (4, 0.4)])
@pytest.mark.parametrize("in_flight", [0, 64], ids=["at once", "64 in flight"])
def test_less_of_a_real_workload_is_computed_twice_and_load_stays_even(
    num_servers: int, most_twice: float, in_flight: int
) -> None:
    """Shares of what vLLM's own balancer computes twice; figures in docs/data-parallel.md."""
    batch = make_workload("micro-2000-200-d16", num_requests=512, scale=2)

    def computed_twice(is_ours: bool) -> tuple[int, float]:
        ranks = route(batch.prompts, 4, num_servers, in_flight, is_ours)
        savings = [optimal_saving(prompts, 16) for prompts in ranks.prompts]
        lost = optimal_saving(batch.prompts, 16).saved_tokens - sum(s.saved_tokens for s in savings)
        return lost, max(ranks.ahead)

    stock, _ = computed_twice(False)
    ours, ahead = computed_twice(True)
    assert ours < most_twice * stock
    assert ahead <= max(8, 0.1 * batch.num_requests / 4) + 4 * num_servers
