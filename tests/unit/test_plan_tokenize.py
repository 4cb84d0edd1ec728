# SPDX-License-Identifier: Apache-2.0
"""Requests become the token ids that vLLM will see, or the model is named with what it lacks."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest
from plan_model import BOS_ID, save_model

from vllm_batchllm.input.request import parse_request
from vllm_batchllm.input.tokenize import TokenizeResult, tokenize_requests
from vllm_batchllm.input.tokenizer import TokenizerError, decode_leniently, load_tokenizer

EVERY_PLANE = "".join(
    chr(plane * 0x10000 + offset) for plane in range(17) for offset in (0x0041, 0x4E2D, 0xFFFD)
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(save_model(tmp_path_factory.mktemp("model")))


def tokenize(tokenizer: Any, *lines: str) -> TokenizeResult:
    requests = [parse_request(number, line) for number, line in enumerate(lines, 1)]
    return tokenize_requests(requests, tokenizer)


def test_a_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: Any) -> None:
    (request,) = tokenize(tokenizer, '{"prompt": "abc", "max_tokens": 4}').requests
    assert list(request.tokens) == tokenizer.encode("abc") and request.tokens[0] == BOS_ID
    assert request.max_tokens == 4


def test_a_chat_is_rendered_by_the_template_which_writes_its_own(tokenizer: Any) -> None:
    line = '{"messages": [{"role": "user", "content": "abc"}], "tools": [{"name": "f"}]}'
    (request,) = tokenize(tokenizer, line).requests
    assert tokenizer.decode(list(request.tokens)) == "tools=1;<user>abc<assistant>"


def test_options_of_the_template_are_passed_on(tokenizer: Any) -> None:
    line = (
        '{"messages": [{"role": "user", "content": "abc"}], '
        '"chat_template_kwargs": {"add_generation_prompt": false, "tokenize": true}}'
    )
    (request,) = tokenize(tokenizer, line).requests
    assert tokenizer.decode(list(request.tokens)) == "<user>abc"


def test_token_ids_stay_as_they_are(tokenizer: Any) -> None:
    (request,) = tokenize(tokenizer, '{"prompt": [5, 4000000000]}').requests
    assert request.tokens == array("I", [5, 4_000_000_000])


def test_formats_may_be_mixed_and_keep_their_order(tokenizer: Any) -> None:
    chat = '{"messages": [{"role": "user", "content": "x"}]}'
    result = tokenize(tokenizer, '{"prompt": "a"}', chat, '{"prompt": [9]}', '{"prompt": "a"}')
    lengths = [len(request.tokens) for request in result.requests]
    assert lengths == [2, len("<user>x<assistant>"), 1, 2]


def test_a_text_and_a_chat_that_renders_to_it_are_told_apart(tokenizer: Any) -> None:
    chat = '{"messages": [{"role": "user", "content": "x"}]}'
    result = tokenize(tokenizer, chat, '{"prompt": "<user>x<assistant>"}')
    first, second = (list(request.tokens) for request in result.requests)
    assert second == [BOS_ID, *first]


def test_every_batch_is_reported(tokenizer: Any) -> None:
    requests = [parse_request(number, '{"prompt": "a"}') for number in range(1300)]
    reported: list[int] = []
    tokenize_requests(requests, tokenizer, reported.append)
    assert sum(reported) == 1300 and len(reported) > 1


def test_every_plane_of_unicode(tokenizer: Any) -> None:
    request = parse_request(1, json.dumps({"prompt": EVERY_PLANE}))
    (result,) = tokenize_requests([request], tokenizer).requests
    assert len(result.tokens) == 1 + len(EVERY_PLANE.encode())
    assert decode_leniently(tokenizer, list(result.tokens[1:])) == EVERY_PLANE


def test_what_the_template_refuses_is_a_bad_line(tokenizer: Any) -> None:
    result = tokenize(
        tokenizer, '{"prompt": "a"}', '{"messages": [{"role": "poet", "content": "x"}]}'
    )
    assert len(result.requests) == 1
    (bad_line,) = result.bad_lines
    assert str(bad_line) == "line 2: the chat template refuses it: no poets, please"


def test_chats_need_a_template(tmp_path: Path) -> None:
    plain = load_tokenizer(save_model(tmp_path, chat_template=None))
    with pytest.raises(TokenizerError, match="has no chat template"):
        tokenize(plain, '{"messages": [{"role": "user", "content": "x"}]}')
    assert len(tokenize(plain, '{"prompt": "a"}').requests) == 1


@pytest.mark.parametrize("tokens", [[4_000_000_000], [2**40], [300, 301]])
def test_ids_beyond_the_vocabulary_are_shown_as_they_are(tokenizer: Any, tokens: list[int]) -> None:
    assert decode_leniently(tokenizer, tokens) == " ".join(map(str, tokens))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{tmp_path}/nowhere does not exist; name an"):
        load_tokenizer(f"{tmp_path}/nowhere")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(TokenizerError, match=r"model\.gguf is a file; name the folder"):
        load_tokenizer(f"{tmp_path}/model.gguf")


def test_a_folder_without_tokenizer_is_half_converted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=f"{tmp_path} holds no tokenizer .*did not finish"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_cut_short_is_half_converted(tmp_path: Path) -> None:
    save_model(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=f"in the model folder {tmp_path} cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TokenizerError, match="nobody/nothing is no folder here, and no tokenizer"):
        load_tokenizer("nobody/nothing")


def test_a_name_without_owner_in_another_folder_is_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("model").bos_token_id == BOS_ID
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(TokenizerError, match="model is no folder here"):
        load_tokenizer("model")


def test_without_vllm_chats_and_openai_bodies_are_refused_by_line_and_prompts_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vllm_batchllm.input.tokenize.installed_vllm_version", lambda: None)
    lines = [
        '{"prompt": [5, 6, 7]}',
        '{"messages": [{"role": "user", "content": "Hello"}]}',
        '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": [8]}}',
    ]
    requests = [parse_request(number, line) for number, line in enumerate(lines, 1)]
    result = tokenize_requests(requests, None)
    assert [list(request.tokens) for request in result.requests] == [[5, 6, 7]]
    assert [bad.line for bad in result.bad_lines] == [2, 3]
    assert "a chat is read as vLLM reads it, and vLLM is not installed" in str(result.bad_lines[0])
    assert "an OpenAI body" in str(result.bad_lines[1])
