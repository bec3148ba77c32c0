"""The atlas tokenizer loses nothing and keeps the protocol short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from atlas_worlds import chat_format, episodes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.atlas.lexicon import Partition, names_of
from genevolve_ray.atlas.scene import SKILLS
from genevolve_ray.atlas.tokenizer import CONTROL, TAGS, build_tokenizer
from genevolve_ray.engines.ban import banned_token_ids

TOKENIZER = chat_format().tokenizer


def ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


@settings(deadline=None, derandomize=True)
@given(
    st.text()
    | st.lists(st.sampled_from([*CONTROL, *TAGS, " ", "  ", "\n", "two", "é", "日", "\x00", "<"])).map("".join)
)
@example("Vel mora  Velmora\n\n'SOL' 7 <think> <|im_end|>")
def test_any_text_comes_back(text: str) -> None:
    assert chat_format().decode(ids(text)) == text


@pytest.mark.parametrize("partition", list(Partition))
def test_a_name_is_two_pieces_wherever_it_stands(partition: Partition) -> None:
    for name in names_of(partition):
        assert len(ids(name)) == len(ids(f" {name}")) == 2
        assert ids(f"moon of {name} now") == [*ids("moon of"), *ids(f" {name}"), *ids(" now")]


def test_names_share_their_pieces() -> None:
    assert ids("Velmora")[0] == ids("Velnath")[0]
    assert ids("Velmora")[1] == ids("Ormora")[1]


@pytest.mark.parametrize(
    "text", [*TAGS, *CONTROL, *(f" {skill}" for skill in SKILLS), "IMG_007", " official", " 'SOL'"]
)
def test_what_decides_is_one_token(text: str) -> None:
    assert len(ids(text)) == 1


def test_teacher_turns_need_no_bytes() -> None:
    bytes_of_fallback = {TOKENIZER.convert_tokens_to_ids(f"<0x{b:02X}>") for b in range(256)}
    for trajectory in episodes():
        assert not bytes_of_fallback & set(trajectory.ledger.tokens)


def test_control_and_tool_responses_are_banned_and_the_protocol_is_not() -> None:
    banned = set(banned_token_ids(TOKENIZER))
    named = {token: TOKENIZER.convert_tokens_to_ids(token) for token in (*CONTROL, *TAGS)}
    assert {token for token, i in named.items() if i in banned} == {
        "<|pad|>",
        "<|im_start|>",
        "<|endoftext|>",
        "<tool_response>",
        "</tool_response>",
    }


def test_building_it_twice_is_building_it_once() -> None:
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_it_survives_its_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    again = ChatFormat(AutoTokenizer.from_pretrained(tmp_path))
    text = "Show two moon with Velmora on the left, é.\n<think>"
    assert again.tokenizer.encode(text, add_special_tokens=False) == ids(text)
    assert (again.end_of_turn_id, again.decode(ids(text))) == (chat_format().end_of_turn_id, text)
