"""Texts to tokens through the model's own chat template, and where the response begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from snt.errors import RequestError

_PLACEHOLDER = "response"


@dataclass(frozen=True)
class Chat:
    """How prompts become tokens: a tokenizer, an optional system prompt, the context length.

    A model without a chat template (a base model) gets the bare text and a line break. `context`
    is the largest number of tokens that the model takes, None when its config does not say.
    `own_template` is a Jinja template to use in place of the tokenizer's; empty, it stands for
    plain text.
    """

    tokenizer: Any
    context: int | None = None
    system: str | None = None
    own_template: str | None = None

    @property
    def template(self) -> str | None:
        """The Jinja template of a conversation; None for plain text."""
        if self.own_template is not None:
            return self.own_template or None
        return getattr(self.tokenizer, "chat_template", None) or None

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return self.template is not None

    @cached_property
    def end_of_turn(self) -> tuple[int, ...]:
        """Tokens that close a response in training data."""
        eos = self.tokenizer.eos_token_id
        if not self.has_template:
            return () if eos is None else (int(eos),)
        before = self.prompt_text("prompt")
        whole = self._render(
            [*self._messages("prompt"), {"role": "assistant", "content": _PLACEHOLDER}], False
        )
        at = whole.find(_PLACEHOLDER, len(before)) if whole.startswith(before) else -1
        closing = whole[at + len(_PLACEHOLDER) :].rstrip("\n") if at >= 0 else ""
        ids = self._ids(closing.strip()) if closing.strip() else []
        return tuple(ids) if ids else (() if eos is None else (int(eos),))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens at which generation stops: end of turn and end of sequence."""
        eos = self.tokenizer.eos_token_id
        return tuple(sorted({*self.end_of_turn[:1], *([] if eos is None else [int(eos)])}))

    @property
    def pad_id(self) -> int:
        """A token to pad with; attention masks the padding, so any token will do."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else (self.stop_ids[0] if self.stop_ids else 0)

    def prompt_text(self, prompt: str) -> str:
        """The prompt as the model sees it, ready for the response."""
        if self.has_template:
            return self._render(self._messages(prompt), True)
        return f"{self.system}\n\n{prompt}\n" if self.system else f"{prompt}\n"

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt. Raises RequestError when it does not fit the context."""
        return self._fitting(self._ids(self.prompt_text(prompt)), prompt)

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes, whether or not they fit the context."""
        return len(self._ids(self.prompt_text(prompt)))

    def pair_ids(self, prompt: str, response: str) -> tuple[list[int], int]:
        """Tokens of prompt, response and end of turn, and the index where the response starts.

        The response is tokenised apart from the prompt, so that it begins at a token border, as it
        does in generation.
        """
        before = self.prompt_ids(prompt)
        after = self.response_ids(response) + list(self.end_of_turn)
        return self._fitting(before + after, prompt), len(before)

    def response_ids(self, response: str) -> list[int]:
        """Tokens of a response, or the beginning of one, as it stands after a prompt."""
        return self._ids(response, beginning=False)

    def text_ids(self, text: str) -> list[int]:
        """Tokens of plain text without a template, cut to the context."""
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[: self.context] if self.context else ids

    def describe(self) -> dict[str, Any]:
        """The template, by its digest, and the system prompt, as they stand in metadata."""
        template = None if self.template is None else str(self.template)
        return {
            "template": template and hashlib.sha256(template.encode()).hexdigest(),
            "system_prompt": self.system,
        }

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]

    def _render(self, messages: list[dict[str, str]], ready: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=ready,
            chat_template=self.own_template,
        )
        return text

    def _ids(self, text: str, beginning: bool = True) -> list[int]:
        # Templates write their own special tokens; adding more would double the first.
        special = beginning and not self.has_template
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _fitting(self, ids: list[int], prompt: str) -> list[int]:
        if self.context is not None and len(ids) > self.context:
            raise RequestError(
                f"a prompt takes {len(ids)} tokens and the model's context holds {self.context}: "
                f"{prompt[:60]!r}… Shorten it or remove it from the corpus"
            )
        return ids
