"""Tokenisation: from rows of data to prompts, and from sampled token ids to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import AutoConfig, AutoTokenizer

from headrace_core.errors import InvalidData, shortened
from headrace_core.protocols.prompt_ids import strip_end_tokens
from headrace_core.storage.dataset import Row, check_prompt, check_prompt_bytes, read_rows

from .end_of_text import end_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a data file as token ids."""

    row: int
    """0-based position in the file."""
    token_ids: npt.NDArray[np.int32]
    """[P] with the chat template applied; ends where the model's turn begins."""
    data: Row


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(self, model: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
        text_model = AutoConfig.from_pretrained(str(model), local_files_only=True).get_text_config()
        self.end_tokens = end_tokens(model, self._tokenizer)
        """Ids that end a completion, in every engine."""
        self._unwritten = {*self.end_tokens, self._tokenizer.pad_token_id}
        self.vocabulary: int | None = getattr(text_model, "vocab_size", None)
        """Number of the model's embeddings; None if its config.json does not say."""

    def prompt(self, messages: Sequence[dict[str, Any]]) -> npt.NDArray[np.int32]:
        """[P] token ids of a conversation.

        Without a chat template (a base model), they are the contents joined by newlines, after the tokenizer's
        begin-of-text tokens and without its end-of-text tokens.
        """
        return self.prompt_of(self.rendered(messages))

    def rendered(self, messages: Sequence[dict[str, Any]]) -> str:
        """The conversation as text, up to where the model's turn begins. Raises whatever the chat template raises."""
        if self._tokenizer.chat_template is None:
            return "\n".join(m["content"] for m in messages)
        return str(self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))

    def prompt_of(self, rendered: str) -> npt.NDArray[np.int32]:
        """[P] token ids of a text made by `rendered`."""
        if self._tokenizer.chat_template is None:
            encoded = self._tokenizer(rendered, return_special_tokens_mask=True)
            ids = strip_end_tokens(encoded["input_ids"], encoded["special_tokens_mask"], self._tokenizer.bos_token_id)
        else:
            ids = self._tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def text(self, token_ids: npt.NDArray[np.int32]) -> str:
        """The text of the tokens without end-of-text and padding tokens; other special tokens (`<think>`) are
        included."""
        written = [token for token in token_ids.tolist() if token not in self._unwritten]
        return str(self._tokenizer.decode(written, clean_up_tokenization_spaces=False))

    def exact_text(self, token_ids: npt.NDArray[np.int32]) -> str:
        """The text of all tokens, special ones included; an incomplete character is U+FFFD."""
        return str(self._tokenizer.decode(token_ids.tolist(), clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """[n] token ids of `text` alone, without those that begin or end a sequence."""
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def read_prompts(
    path: Path,
    tokenizer: Tokenizer,
    longest: int,
    sha256: str | None = None,
    began: Callable[[int], None] = lambda line: None,
) -> list[Prompt]:
    """All rows of a file as prompts. `began` is called with the line of each row before it is rendered.

    Raises `InvalidData`, with the line, for a prompt that no engine can serve or of more than `longest` tokens (see
    `check_prompt`), and as `read_rows` does.
    """
    prompts = []
    for number, row in enumerate(read_rows(path, sha256=sha256)):
        where = f"{path.name}, line {row.line}"
        began(row.line)
        check_prompt_bytes(where, row.messages, longest)
        try:
            rendered = tokenizer.rendered(row.messages)
        except MemoryError:  # it is not the template that refuses these messages
            raise
        except Exception as error:  # a template is a program, and may raise anything
            reason = shortened(str(error)) or type(error).__name__
            raise InvalidData(f"{where}: the model's chat template refuses the messages: {reason}") from error
        check_prompt_bytes(where, [{"content": rendered}], longest)
        ids = tokenizer.prompt_of(rendered)
        check_prompt(where, len(ids), int(ids.max(initial=-1)), longest, tokenizer.vocabulary)
        prompts.append(Prompt(number, ids, row))
    return prompts
