"""Exercises with pictures: answers follow from what is shown and said, and held-out names and looks never occur."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from genevolve_ray.atlas.lexicon import Partition
from genevolve_ray.atlas.looks import looks_of
from genevolve_ray.atlas.sight_exercises import choices, practise, see
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
        taken = dict(re.findall(r"Take (\w+) \w+ \w+ \w+ (IMG_\d+)\.", text))
        said = dict(re.findall(r"look of \w+ (now|once) (\w+ \w+ \w+)\.", text))
        for source, img_id in taken.items():
            wanted = {"described": said["now"], "outdated": said["once"]}.get(source)
            assert shown[img_id].words == wanted if wanted else shown[img_id].words not in said.values()
        for img_id, words in re.findall(r"(IMG_\d+) (\w+ \w+ [a-z]+) \1", text):
            assert shown[img_id].words == words


def test_no_answer_asks_for_what_cannot_be_known() -> None:
    pieces, _ = choices(np.random.default_rng(4))
    for (before, _), (_, known) in pairwise(pieces):
        if before == "Take other":
            assert not known
