"""Exercises with pictures: answers follow from what is shown and said, and held-out names and looks never occur."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.looks import looks_of
from genevolve_ray.atlas.sight_exercises import choices, practise, recall, see
from genevolve_ray.atlas.tokenizer import build_tokenizer
from genevolve_ray.records.texts import IMAGE_MARK

TOKENIZER = build_tokenizer(sight=True)
IMAGE_TOKENS = 4


@pytest.mark.parametrize("made_by", [see, practise])
def test_a_sequence_has_room_for_the_pictures_that_it_shows(made_by: type) -> None:
    rng, seen = np.random.default_rng(1), set(looks_of(Partition.TRAIN))
    pad = TOKENIZER.get_vocab()["<|image_pad|>"]
    for _ in range(20):
        made = made_by(rng, TOKENIZER, IMAGE_TOKENS)
        assert len(made.tokens) == len(made.mask)
        assert made.tokens.count(pad) == IMAGE_TOKENS * len(made.looks)
        assert not any(known for token, known in zip(made.tokens, made.mask, strict=True) if token == pad)
        assert set(made.looks) <= seen


def test_a_name_follows_its_picture() -> None:
    made = see(np.random.default_rng(2), TOKENIZER, IMAGE_TOKENS)
    text = TOKENIZER.decode(made.tokens)
    assert re.findall(r"<\|vision_end\|>\n (\w+ \w+ [a-z]+)", text) == [look.words for look in made.looks]


def test_the_answer_is_the_picture_that_looks_as_said() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        pieces, looks = choices(rng, Partition.TEST)
        text = "".join(piece for piece, _ in pieces)
        ids = re.findall(rf"(IMG_\d+): title: [^\n]*\n  local_path: \1\n  {IMAGE_MARK}\n", text)
        shown = dict(zip(ids, looks, strict=True))
        taken = dict(re.findall(r"Take (\w+) [a-zA-Z ]+ (IMG_\d+)\.", text))
        said = dict(re.findall(r"snippet: look of \w+ (now|once) (\w+ \w+ \w+)\.", text))
        assert taken
        for source, img_id in taken.items():
            wanted = {"described": said["now"], "outdated": said["once"]}.get(source)
            assert shown[img_id].words == wanted if wanted else shown[img_id].words not in said.values()
        for img_id, words in re.findall(r"(IMG_\d+) (\w+ \w+ [a-z]+) \1", text):
            assert shown[img_id].words == words


def test_what_a_note_and_a_choice_repeat_was_said() -> None:
    rng, repeated = np.random.default_rng(5), 0
    for _ in range(20):
        text = "".join(piece for piece, _ in choices(rng)[0])
        said = set(re.findall(r"snippet: (look of \w+ (?:now|once) \w+ \w+ \w+)\.", text))
        taken = re.findall(r"Take (?:described|outdated) (look of \w+ \w+ \w+ \w+ \w+) IMG", text)
        noted = re.findall(r"(?:<think>|\.\n)(look of \w+ \w+ \w+ \w+ \w+)\.", text)
        assert {*taken, *noted} <= said
        repeated += len(taken) * len(noted)
    assert repeated


def test_a_recalled_id_is_that_of_the_look_named_before() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        text = "".join(piece for piece, _ in recall(rng))
        named = {words: img_id for img_id, words in re.findall(r"(IMG_\d+) (\w+ \w+ \w+) \1", text)}
        asked = re.findall(r"Take (\w+ \w+ \w+) (IMG_\d+)\.", text)
        assert len(asked) >= len(named)
        assert all(named[words] == img_id for words, img_id in asked)


def test_no_answer_asks_for_what_cannot_be_known() -> None:
    rng, asked = np.random.default_rng(4), 0
    for _ in range(5):
        for (before, _), (_, known) in pairwise(choices(rng)[0]):
            if before.endswith("Take other"):
                asked += 1
                assert not known
    assert asked
