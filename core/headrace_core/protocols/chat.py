"""The protocol between the gateway and the chat process of one model. Plain values only: they cross process borders.

    gateway                                        chat process of one model
    begin(ChatRequest) ──────────────────────────► ChatBegun   the prompt is tokenised, completions are being sampled
    read(id) ◄── ChatProgress since last read ───  …           until `ended`; a chat that is not read is aborted
    abort(id) ───────────────────────────────────►             frees the chat's resources

All errors are of `errors`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ChatEngine = Literal["vllm", "transformers"]
FinishReason = Literal["stop", "length"]


class ChatConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One model, and how the chat process runs it."""

    model: str
    """The name by which requests choose the model."""
    model_path: str
    engine: ChatEngine
    context: int
    """Maximum length of prompt and completion together, in tokens."""
    kv_cache_gib: float
    threads: int
    gpus: float = 0.0
    """GPUs, or the part of one, that the process was given."""
    idle_seconds: float
    """The process ends after this long without a chat."""
    start_timeout: float


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`n` completions of one conversation."""

    messages: tuple[dict[str, str], ...]
    """Each has `role` and `content`."""
    max_tokens: int | None = None
    """None: as many as the context holds."""
    temperature: float = 1.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    """Texts before the first occurrence of which a completion ends."""
    json_schema: str | None = None
    """JSON Schema, as JSON text, that each completion must satisfy; None: any text."""
    seed: int | None = None
    """Each completion's seed is derived from this one and the completion's number."""


class ChatPrompt(msgspec.Struct, frozen=True, kw_only=True):
    """The tokenised prompt of a request, made by a process with resource limits
    (`headrace_gateway.chat.prompt_renderer`)."""

    token_ids: tuple[int, ...]
    """With the chat template applied; ends where the model's turn begins."""


class ChatToken(msgspec.Struct, frozen=True):
    """One sampled token."""

    text: str
    """U+FFFD if the token is only a part of a character."""
    logprob: float
    """Natural log of its probability in the distribution sampled from; for greedy decoding, in the distribution at
    temperature 1."""


class ChatPart(msgspec.Struct, frozen=True):
    """What was added to one completion since its last part."""

    choice: int
    """Which completion, 0 … n - 1."""
    text: str
    tokens: tuple[ChatToken, ...]
    """The tokens of `text`; without the token that ends a completion."""
    finish_reason: FinishReason | None = None
    """None: the completion continues."""


class ChatProgress(msgspec.Struct, frozen=True):
    """What was sampled since the last read."""

    parts: tuple[ChatPart, ...]
    """In the order in which they were sampled."""
    completion_tokens: int
    """Tokens sampled so far, over all completions."""
    ended: bool
    """All completions have ended: there are no more parts."""


class ChatBegun(msgspec.Struct, frozen=True):
    """The answer to an accepted `ChatRequest`."""

    id: str
    prompt_tokens: int


class ChatFacts(msgspec.Struct, frozen=True):
    """How busy a chat process is."""

    model: str
    ready: bool
    """The model is loaded."""
    chats: int
    """Chats in progress."""
    idle_seconds: float
    """Seconds since the last chat ended; 0 while one is in progress."""
