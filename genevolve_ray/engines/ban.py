"""The static ban mask: token ids that the policy must never emit.

Engine and learner share it, so that mu and pi agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

END_OF_TURN = "<|im_end|>"
PROTOCOL_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
ALLOWED_CONTROL = (END_OF_TURN, *PROTOCOL_TAGS)
ENVIRONMENT_TAGS = ("<tool_response>", "</tool_response>")
"""Only the environment writes these: a policy that emits them would be faking an observation."""


def banned_token_ids(
    tokenizer: Any,
    allowed_control: Iterable[str] = ALLOWED_CONTROL,
    vocab_size: int | None = None,
) -> tuple[int, ...]:
    """Return the ids that the policy must not emit, sorted.

    Three kinds are banned. These are all special and added tokens (chat control, padding, media) that are not in
    `allowed_control`, the tags that only the environment writes, and the ids that the model's embedding has beyond the
    tokenizer's vocabulary.

    Args:
        tokenizer: A Hugging Face tokenizer.
        allowed_control: Control tokens the policy may emit. Where the vocabulary has no `<|im_end|>`, the tokenizer's
            own end-of-sequence token is allowed in its place.
        vocab_size: The model's vocabulary size, where it may be padded beyond the tokenizer's.
    """
    vocab: dict[str, int] = tokenizer.get_vocab()
    allowed = set(allowed_control)
    if END_OF_TURN in allowed and END_OF_TURN not in vocab and tokenizer.eos_token is not None:
        allowed.add(tokenizer.eos_token)
    control = {int(i): str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
    control |= {vocab[token]: token for token in tokenizer.all_special_tokens if token in vocab}
    control |= {vocab[token]: token for token in ENVIRONMENT_TAGS if token in vocab}
    banned = {i for i, token in control.items() if token not in allowed}
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
