"""Prompts and responses to tokens: templates, end of turn, base models, the context."""

from __future__ import annotations

import pytest
from conftest import byte_tokenizer

from snt.chat import Chat
from snt.errors import RequestError


def test_a_pair_begins_with_the_prompt_and_ends_with_the_end_of_turn() -> None:
    chat = Chat(byte_tokenizer())
    prompt = chat.prompt_ids("How?")
    ids, start = chat.pair_ids("How?", "No.")
    assert ids[:start] == prompt
    assert chat.tokenizer.decode(ids[start:]) == "No.<|end|>"
    rendered = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "No."}],
        tokenize=False,
    )
    assert chat.tokenizer.decode(ids) + "\n" == rendered


def test_stop_tokens_hold_the_end_of_turn() -> None:
    chat = Chat(byte_tokenizer())
    assert chat.stop_ids == chat.end_of_turn == (chat.tokenizer.eos_token_id,)


def test_the_system_prompt_is_used_and_described() -> None:
    plain, told = Chat(byte_tokenizer()), Chat(byte_tokenizer(), system="Be brief.")
    assert "Be brief." in told.prompt_text("Hi") and "Be brief." not in plain.prompt_text("Hi")
    assert told.describe()["system_prompt"] == "Be brief."
    assert told.describe()["template"] == plain.describe()["template"] is not None


def test_a_base_model_gets_the_bare_text() -> None:
    chat = Chat(byte_tokenizer(template=None), system="Be brief.")
    assert not chat.has_template and chat.describe()["template"] is None
    assert chat.prompt_text("Hi") == "Be brief.\n\nHi\n"
    ids, start = chat.pair_ids("Hi", "Yes")
    assert chat.tokenizer.decode(ids[start:]) == "Yes<|end|>"


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(RequestError, match="context holds 40") as caught:
        Chat(byte_tokenizer(), context=40).prompt_ids("x" * 100)
    assert caught.value.exit_code == 2
    assert len(Chat(byte_tokenizer(), context=40).text_ids("x" * 100)) == 40
