"""Base of `score_model` and `label_model`: one request per completion to the operator's judge, a server with OpenAI's
protocol, which answers in JSON of a given schema.

    completion ─► templates filled ─► POST {judge_url}/chat/completions ─► {"result": …} of the schema's type

The operator's settings are HEADRACE_JUDGE_URL and HEADRACE_JUDGE_KEY; the key is a header, see `http_client`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from pydantic import ConfigDict, Field

from headrace_core.config.exact_model import ExactModel
from headrace_core.config.reward_permissions import RewardPermissions
from headrace_core.errors import InvalidRequest
from headrace_core.protocols.grader_check import Failure, NotApplicable, Outcome

from ..http_client import JsonAnswer, JsonClient, parsed_url
from ..protocol import Sample, score_wanted
from .spec import GraderSpec
from .string_check import TemplateText
from .templates import MissingPath, Template, outcome_of, rendered

_CONCURRENCY = 32
"""Most requests at the same time, from each rollout worker."""

Result = TypeVar("Result", float, str)


class _Part(ExactModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(_Part):
    """A text block of a message; images and audio are not supported."""

    type: Literal["input_text", "output_text", "text"]
    text: TemplateText


class Message(_Part):
    """A message to the judge; its texts are templates."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: TemplateText | Text | Annotated[tuple[TemplateText | Text, ...], Field(min_length=1)]

    def template(self) -> Template:
        """The whole content as one template, with the blocks on separate lines."""
        blocks = self.content if isinstance(self.content, tuple) else (self.content,)
        return Template.parse("\n".join(block if isinstance(block, str) else block.text for block in blocks))


class SamplingParams(_Part):
    """OpenAI's fields, with OpenAI's spelling `max_completions_tokens`. The server chooses what is not given."""

    max_completions_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: str | None = None
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)

    def fields(self) -> dict[str, Any]:
        """The fields that were given, under the names that the chat completions API uses."""
        given = self.model_dump(exclude_none=True)
        if "max_completions_tokens" in given:
            given["max_completion_tokens"] = given.pop("max_completions_tokens")
        return given


class JudgeSpec(GraderSpec):
    """Fields that the two graders share. `timeout`, `attempts` and `check_connection` are Headrace's, the others
    OpenAI's."""

    model: str = Field(min_length=1)
    """The model's name on the judge's server."""
    input: tuple[Message, ...] = Field(min_length=1)
    sampling_params: SamplingParams = SamplingParams()
    steps: bool = True
    """Whether the judge writes its reasoning steps before the result, like OpenAI's."""
    timeout: float = Field(default=60.0, gt=0, le=600)
    """Seconds for one attempt."""
    attempts: int = Field(default=3, ge=1, le=10)
    check_connection: bool = True
    """Whether a job is rejected if the server accepts no connection when the job is submitted. False for a server that
    is started later."""


class _JudgeMessage(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _JudgeMessage
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Grade(msgspec.Struct):
    result: Any


class ModelGrader(ABC, Generic[Result]):
    """A grader that asks a judge for one `Result` per sample; a subclass turns the result into a reward."""

    def __init__(
        self,
        spec: JudgeSpec,
        rules: RewardPermissions,
        result: type[Result],
        schema: Mapping[str, Any],
        lowest: float = 0.0,
    ) -> None:
        """`schema`: JSON schema of the result; `lowest`: the lowest possible reward. Raises `InvalidRequest` if the
        operator has configured no judge."""
        self._client = _client(spec, rules)
        self._check_connection = spec.check_connection
        self._messages = [("system" if m.role == "developer" else m.role, m.template()) for m in spec.input]
        self._fixed = {
            "model": spec.model,
            **spec.sampling_params.fields(),
            "response_format": {"type": "json_schema", "json_schema": _wrapped(schema, spec.steps)},
        }
        self._type: type[Result] = result
        self._lowest = lowest

    async def start(self) -> None:
        """Open the client; sends no request yet."""
        await self._client.start()

    async def close(self) -> None:
        """Close the client; requests in flight return `unavailable`. Idempotent."""
        await self._client.close()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """One outcome per sample, from one request per sample, all sent at the same time."""
        return await score_wanted(samples, lambda wanted: asyncio.gather(*map(self._score, wanted)))

    async def rehearse(self, samples: Sequence[Sample]) -> list[Outcome]:
        """See `Rehearsable`: whether the judge accepts a connection, and the templates can be filled."""
        connection_failure = await self._client.connection_failure() if self._check_connection else None
        questions = [self._question(sample) for sample in samples]
        return [connection_failure or NotApplicable() if isinstance(body, bytes) else body for body in questions]

    @abstractmethod
    def outcome(self, result: Result) -> Outcome:
        """The reward for a result; `Failure("invalid_value")` for one that violates the schema."""

    def quoted(self, text: str) -> str:
        """The judge's text, redacted and shortened, for an error message."""
        return self._client.quoted(text)

    async def _score(self, sample: Sample) -> Outcome:
        body = self._question(sample)
        if not isinstance(body, bytes):
            return body
        answer = await self._client.post(body)
        if isinstance(answer, Failure):
            return answer
        result = self._read(answer)
        return result if isinstance(result, Failure) else self.outcome(result)

    def _question(self, sample: Sample) -> bytes | Outcome:
        try:
            texts = rendered(sample, *(template for _, template in self._messages))
            messages = [{"role": m[0], "content": text} for m, text in zip(self._messages, texts, strict=True)]
            return msgspec.json.encode({**self._fixed, "messages": messages})
        except MissingPath as missing:
            return outcome_of(missing, self._lowest)
        except UnicodeEncodeError as fault:  # half a surrogate pair
            return Failure("bad_input", f"the question cannot be written as JSON: {fault}")

    def _read(self, answer: JsonAnswer) -> Result | Failure:
        try:
            choice = msgspec.convert(answer.value, _Completion).choices[0]
        except (msgspec.ValidationError, IndexError) as fault:
            return Failure("bad_output", f"the judge's answer is no chat completion: {fault}")
        if choice.message.refusal:
            return Failure("bad_output", f"the judge refused: {self.quoted(choice.message.refusal)}")
        text = choice.message.content or ""
        try:
            return msgspec.convert(msgspec.json.decode(text, type=_Grade).result, self._type)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            cut = " before its limit of tokens" if choice.finish_reason == "length" else ""
            return Failure("bad_output", f'the judge wrote no {{"result": …}}{cut}: {self.quoted(text)}')


def _client(spec: JudgeSpec, rules: RewardPermissions) -> JsonClient:
    if rules.judge_url is None:
        fault = f"a {spec.type} grader asks a model, and the operator has named no server for it (HEADRACE_JUDGE_URL)"
        raise InvalidRequest(fault, param="grader.type")
    url = f"{rules.judge_url.rstrip('/')}/chat/completions"
    try:
        parsed_url(url)
    except ValueError as fault:
        raise InvalidRequest(f"HEADRACE_JUDGE_URL: {fault}", param="grader.type") from None
    key = {"Authorization": f"Bearer {rules.judge_key}"} if rules.judge_key else {}
    return JsonClient(url, timeout=spec.timeout, attempts=spec.attempts, concurrency=_CONCURRENCY, headers=key)


def _wrapped(schema: Mapping[str, Any], steps: bool) -> dict[str, Any]:
    """The response format. `steps` come before `result`, so that the model reasons before it decides."""
    text = {"type": "string"}
    of_steps = {"steps": {"type": "array", "items": _object({"description": text, "conclusion": text})}}
    properties = {**(of_steps if steps else {}), "result": dict(schema)}
    return {"name": "grade", "strict": True, "schema": _object(properties)}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
