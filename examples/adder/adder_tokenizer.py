"""A tokenizer that keeps each word of the task as one token, and any other text as bytes.

Decoding returns exactly the encoded text. The text `<answer>` is always the two tokens `<answer` and `>`, whatever the
text around it, so a completion may be cut after its first `<answer` and `> 93 </answer>` appended as separately
encoded tokens: the ids are the same as those of the whole text. Each digit is a token ("93" is two tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .adder_problems import WORDS

PAD, END, SYSTEM, USER, ASSISTANT = SPECIALS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CONTEXT = 256  # tokens

# A word includes the space before it or the opening of a tag; every other character is a token of its own.
PIECES = Regex(r" ?(?:</?)?[A-Za-z]+| ?[^A-Za-z]")
TASK_PIECES = (
    "What", " is", "?", " +", "first", "simply", ",", ".", " plus", " so", " we", " need", " to", " carry", " the",
    " nothing", " ends", " in", " <answer", " </answer", "<answer", "</answer", ">",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(more_pieces: Sequence[str] = (), context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """The fast tokenizer, with its chat template and special tokens. Nothing in it is trained or random.

    `more_pieces` are tokens in addition to the adder's own; `context` is the maximum sequence length in tokens.
    """
    digits = [f"{space}{digit}" for space in ("", " ") for digit in range(10)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(byte_level.alphabet())
    pieces_of_the_task = (*TASK_PIECES, *digits, *(f" {word}" for word in WORDS), *more_pieces)
    whole = [byte_level.pre_tokenize_str(piece)[0][0] for piece in pieces_of_the_task]
    pieces = dict.fromkeys([*SPECIALS, *alphabet, *whole])
    # no merges: a piece that is in the vocabulary is one token, any other is split into its bytes
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, [], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(PIECES, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
