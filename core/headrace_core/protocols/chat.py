"""What the gateway and the process that chats with one model say to each other. Plain values only: they cross process
borders.

    gateway                                       process of one model
    begin(ChatRequest) ─────────────────────────► ChatBegun   the prompt is made, its completions are being sampled
    read(id) ◄── ChatProgress: since the last ──  …           until `ended`; a chat that nobody reads is ended
    abort(id) ──────────────────────────────────►             frees what it holds

Its errors are those of `errors`, and no others.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ChatEngine = Literal["vllm", "transformers"]
FinishReason = Literal["stop", "length"]


class ChatConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One model, and how it is run."""

    model: str
    """The name it is asked for by."""
    model_path: str
    engine: ChatEngine
    context: int
    """Prompt and completion together, in tokens."""
    kv_cache_gib: float
    threads: int
    idle_seconds: float
    """The process ends after so long without a chat."""
    start_timeout: float


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`n` completions of one conversation."""

    messages: tuple[dict[str, str], ...]
    """Of `role` and `content`."""
    max_tokens: int | None = None
    """None: as many as the context holds."""
    temperature: float = 1.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    """A completion ends before the first of them."""
    json_schema: str | None = None
    """What each completion is to be, as JSON; None: any text."""
    seed: int | None = None
    """Each completion's own is derived from it and from the completion's number."""


class ChatPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is to the model: made from it by a process with limits, see
    `headrace_gateway.chat.chat_prompts`."""

    token_ids: tuple[int, ...]
    """Chat template applied, ending where the model is to go on."""


class ChatToken(msgspec.Struct, frozen=True):
    """One sampled token."""

    text: str
    """U+FFFD where it is a part of a character."""
    logprob: float
    """Natural log, of the distribution sampled from; of a greedy request: of the untempered one."""


class ChatPart(msgspec.Struct, frozen=True):
    """What one completion has said since the last part of it."""

    choice: int
    """Which completion, 0 … n - 1."""
    text: str
    tokens: tuple[ChatToken, ...]
    """Those that `text` is made of; the one that ends a completion is not among them."""
    finish_reason: FinishReason | None = None
    """None: it goes on."""


class ChatProgress(msgspec.Struct, frozen=True):
    """Parts since the last reading, in order; `ended`: there are no more."""

    parts: tuple[ChatPart, ...]
    completion_tokens: int
    """Sampled so far, of all completions."""
    ended: bool


class ChatBegun(msgspec.Struct, frozen=True):
    """The first answer to a chat: it was accepted."""

    id: str
    prompt_tokens: int


class ChatFacts(msgspec.Struct, frozen=True):
    """How busy the process is."""

    model: str
    ready: bool
    """The model is loaded."""
    chats: int
    """Under way."""
    idle_seconds: float
    """Since the last one ended; 0 while there are any."""
