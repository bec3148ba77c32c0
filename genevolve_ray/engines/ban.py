"""The static ban mask: token ids that the policy must never emit.

Engine and learner share it, so that mu and pi agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PROTOCOL_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
ENVIRONMENT_TAGS = ("<tool_response>", "</tool_response>")
"""Only the environment writes these: a policy that emits them would be faking an observation."""
_END_OF_TURN = "<|im_end|>"
_OPENING, _CLOSING = "<[|", ">]|"
_BLANKS = " \t\r\n\u2581"


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the control tokens of a tokenizer by id: special ones, added ones in brackets, the environment's tags.

    Many tokenizers do not mark all control tokens special, and some hold runs of line breaks as added tokens.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()
    control = {
        int(i): str(token.content)
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or _bracketed(str(token.content))
    }
    control |= {vocab[token]: token for token in tokenizer.all_special_tokens if token in vocab}
    return control | {vocab[token]: token for token in ENVIRONMENT_TAGS if token in vocab}


def _bracketed(text: str) -> bool:
    """Return whether a token has the shape `<|eot_id|>` or `[INST]`; added line breaks and words are ordinary text."""
    text = text.strip(_BLANKS)
    return bool(text) and text[0] in _OPENING and text[-1] in _CLOSING


def banned_token_ids(tokenizer: Any, vocab_size: int | None = None, end_of_turn: int | None = None) -> tuple[int, ...]:
    """Return the ids that the policy must not emit, sorted.

    These are the control tokens except the protocol's tags and the end of a turn, and the ids that the model's
    embedding has beyond the tokenizer's vocabulary.

    Args:
        tokenizer: A Hugging Face tokenizer.
        vocab_size: The model's vocabulary size, where it may be padded beyond the tokenizer's.
        end_of_turn: The token that ends a turn in the chat template (`ChatFormat.end_of_turn_id`), which need not be
            the tokenizer's end of sequence. By default `<|im_end|>`, or the end of sequence where there is none.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()
    if end_of_turn is None:
        end_of_turn = vocab.get(_END_OF_TURN, tokenizer.eos_token_id)
    banned = {i for i, token in control_tokens(tokenizer).items() if token not in PROTOCOL_TAGS and i != end_of_turn}
    if vocab_size is not None:
        known = set(vocab.values())
        banned |= {i for i in range(vocab_size) if i not in known}
    return tuple(sorted(banned))


def ban_mask(banned: Iterable[int], vocab_size: int) -> npt.NDArray[np.bool_]:
    """Return bool [vocab_size], True where a token is banned.

    Raises:
        ValueError: If an id is outside the vocabulary, or no token would remain to sample.
    """
    import numpy as np

    ids = sorted(set(banned))
    if ids and not 0 <= ids[0] <= ids[-1] < vocab_size:
        raise ValueError(f"banned ids must lie in [0, {vocab_size}), got {ids[0]}..{ids[-1]}")
    if len(ids) >= vocab_size:
        raise ValueError(f"all {vocab_size} tokens are banned: nothing is left to sample")
    mask_V = np.zeros(vocab_size, dtype=np.bool_)
    mask_V[ids] = True
    return mask_V
