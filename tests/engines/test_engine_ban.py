"""The ban mask."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_qwen3 import build_tokenizer
from tokenizers import AddedToken

from genevolve_ray.engines.ban import PROTOCOL_TAGS, ban_mask, banned_token_ids


def test_control_tokens_are_banned_but_for_the_protocols_own(tokenizer: Any) -> None:
    vocab = tokenizer.get_vocab()
    banned = {tokenizer.convert_ids_to_tokens(i) for i in banned_token_ids(tokenizer)}
    assert banned == {"<|endoftext|>", "<|im_start|>", "<|image_pad|>", "<tool_response>", "</tool_response>"}
    assert set(PROTOCOL_TAGS) <= vocab.keys()


def test_the_padding_of_the_vocabulary_is_banned(tokenizer: Any) -> None:
    size = len(tokenizer)
    assert set(banned_token_ids(tokenizer, vocab_size=size + 3)) >= {size, size + 1, size + 2}


def test_the_mask_is_true_where_banned() -> None:
    assert ban_mask((1, 3), 5).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(("banned", "message"), [((5,), "got 5..5"), ((-1, 2), "got -1..2"), (range(5), "all 5")])
def test_a_mask_that_cannot_be_is_refused(banned: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ban_mask(banned, 5)


@pytest.mark.parametrize("special", [True, False])
def test_the_end_of_the_templates_turn_is_allowed_and_other_ends_are_not(special: bool) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=special)], special_tokens=special)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end in banned_token_ids(tokenizer)
    banned = banned_token_ids(tokenizer, end_of_turn=end)
    assert end not in banned
    assert tokenizer.eos_token_id in banned  # Emitted inside a turn it would end nothing.


def test_added_line_breaks_and_words_are_text_and_may_be_emitted() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["\n\n", "heron", "<unused7>"])
    banned = banned_token_ids(tokenizer)
    assert [tokenizer.convert_tokens_to_ids(text) in banned for text in ("\n\n", "heron", "<unused7>")] == [0, 0, 1]
