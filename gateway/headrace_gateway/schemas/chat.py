"""Request and response bodies of chat completions, whole or in chunks.

A parameter that is not listed here is refused by name, because ignoring it would look as if it had had an effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from headrace_core.config.generation_settings import MIN_TEMPERATURE
from headrace_core.protocols.chat import ChatRequest, FinishReason

from ..chat.response_format import ResponseFormat
from .base import RequestModel, ResponseModel

MAX_COMPLETIONS = 16
"""Maximum number of completions of one request (`n`)."""

_Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _form(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


class TextPart(RequestModel):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


_Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("list"), Field(min_length=1, max_length=256)],
    Discriminator(_form),
]
_Stops = Annotated[
    Annotated[_Stop, Tag("text")] | Annotated[list[_Stop], Tag("list"), Field(max_length=4)],
    Discriminator(_form),
]


class ChatMessage(RequestModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is the same as `system`."
    )
    content: _Content = Field(description="Text, or parts of text, which are joined with line breaks.")

    def plain(self) -> dict[str, str]:
        """The message in the form that chat templates use."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": role, "content": text}


class TextFormat(RequestModel):
    """`response_format` of a job's completions: text is the only form."""

    type: Literal["text"]


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool = False


class CreateChatCompletion(RequestModel):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "headrace/tiny-adder",
                    "messages": [{"role": "user", "content": "What is 37 + 56?"}],
                    "temperature": 0,
                }
            ]
        },
    )

    model: str = Field(max_length=1024, description="Name of a base model or of a trained model.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="Maximum tokens of a completion; default: the rest of the context."
    )
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Older name of `max_completion_tokens`.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy decoding; the default is 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_COMPLETIONS)
    stop: _Stops | None = Field(None, description="A completion ends before the first of these texts; up to 4.")
    seed: int | None = Field(None, ge=0, lt=2**63)
    logprobs: bool | None = Field(
        None, description="Whether to return each token's log-probability under the sampled distribution."
    )
    top_logprobs: Literal[0] | None = Field(None, description="0: log-probabilities of other tokens are not available.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512, description="Accepted and ignored.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Accepted and ignored.")
    store: bool | None = Field(None, description="Accepted and ignored: completions are not stored.")
    safety_identifier: str | None = Field(None, max_length=512, description="Accepted and ignored.")
    prompt_cache_key: str | None = Field(None, max_length=512, description="Accepted and ignored.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="Accepted and ignored.")
    response_format: ResponseFormat | None = Field(
        None, description="Form of the completions: text, JSON, or JSON of a schema."
    )
    modalities: list[Literal["text"]] | None = Field(None, max_length=1, description="Completions are text.")
    tools: list[Any] | None = Field(None, description="Tools are not supported: an empty list.")
    tool_choice: Literal["none", "auto"] | None = Field(
        None, description="Both values have the same effect, because there are no tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="Accepted and ignored: there are no tools.")
    frequency_penalty: float | None = Field(None, description="0: penalties are not supported.")
    presence_penalty: float | None = Field(None, description="0: penalties are not supported.")
    logit_bias: dict[str, float] | None = Field(None, description="Empty: biases are not supported.")

    @field_validator("frequency_penalty", "presence_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("completions are sampled without penalties: leave it out, or give 0")
        return value

    @field_validator("tools", "logit_bias")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        if value:
            raise ValueError("nothing of it is known here: leave it out, or give it empty")
        return value

    @field_validator("temperature")
    @classmethod
    def _not_nearly_greedy(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < MIN_TEMPERATURE:
            raise ValueError(f"{value:g} is too near to 0: give 0 itself, or at least {MIN_TEMPERATURE}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> CreateChatCompletion:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same, and differ: give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams: set stream to true")
        return self

    def request(self) -> ChatRequest:
        """The request to the model's process."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return ChatRequest(
            messages=tuple(message.plain() for message in self.messages),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            n=self.n or 1,
            stop=tuple(stop),
            json_schema=None if self.response_format is None else self.response_format.schema_text(),
            seed=self.seed,
        )


class TokenLogprob(ResponseModel):
    """One token of a completion."""

    token: str
    bytes: Annotated[
        list[int] | None, Field(description="The token's text in UTF-8; null if it is a part of a character.")
    ]
    logprob: float
    top_logprobs: Annotated[list[Any], Field(description="Always empty.")]


class Logprobs(ResponseModel):
    """`logprobs` of a choice."""

    content: list[TokenLogprob]
    refusal: None


class Usage(ResponseModel):
    """Number of tokens: of the rendered prompt, and of all completions, end tokens included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(ResponseModel):
    """The message of a completion."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(ResponseModel):
    """One completion."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(ResponseModel):
    """The response without streaming."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(ResponseModel, total=False):
    """The additions since the last chunk of this choice; clients concatenate them."""

    role: Literal["assistant"]
    content: str


class ChunkChoice(ResponseModel):
    """A part of one completion."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(ResponseModel):
    """One event of a streamed response."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[
        Annotated[Usage | None, Field(description="Only in the last chunk, and only if `stream_options` requests it.")]
    ]
