"""Tokenizer of the atlas: whole words of the atlas and of its protocol, bytes for any other text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genevolve_ray.agent.profile import PROFILES, system_prompt
from genevolve_ray.atlas.lexicon import PREFIXES, SUFFIXES
from genevolve_ray.atlas.scene import (
    COLOURS,
    COMPANIONS,
    COUNT_WORDS,
    KINDS,
    MATERIALS,
    MEDIA,
    MOODS,
    PATTERNS,
    SHAPES,
    SIDES,
    SIGHT_SOURCES,
    SKILLS,
    SOURCES,
    TEXTS,
)
from genevolve_ray.records.program import ORDINALS
from genevolve_ray.tools.skillset import load_skills, skill_view

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
TAGS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    "<tool_response>",
    "</tool_response>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that keeps earlier thinking: the learner then trains on exactly the tokens that the engine consumed."""

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Control tokens of a Qwen3-VL, besides the others."""
SIGHT_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ message.content }}",
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}",
)
"""The same for messages with pictures among their parts."""

FRAGMENTS = (
    "system\n",
    "user\n",
    "assistant\n",
    '{"name": "',
    '", "arguments": {"queries": ["',
    '", "arguments": {"query": "',
    '", "arguments": {"skill_name": "',
    '", "',
    '"]}}',
    '"}}',
    '{"gen_prompt": "',
    '", "reference_images": [{"img_id": "',
    '", "note": "',
    '"}, {"img_id": "',
    '"}]}',
    "--- search result for [",
    "--- image search result for [",
    "--- search error for [",
    "--- image search error for [",
    "] ---\n",
    "--- end of search result ---",
    "--- end of image search result ---",
    ". snippet: ",
    ". snippet:",
    ": title: ",
    ": title:",
    " reference image",
    " picture",
)
"""Fixed phrases of the wire protocol that carry no decision, one token each."""
SIGHT_FRAGMENTS = ("\n  local_path:", "\n  ")
"""Fixed phrases around a picture."""
SIGHT_WORDS = (*SIGHT_SOURCES, "any")
STYLED_WORDS = (
    "say half part glow beams strip base across whole throughout attached fixed to highlight sheen line spaced apart as like "
    "things first last"
).split()
"""Words of the other wordings of a structure (`atlas/habits.py`), and of guidance about them."""

WORDS = (
    "Show with its and the text motto mood in on of legs moon picture look kin now once draw from saying has kin at bottom side "
    "light above over every part joined under body a bright edge row image reference clause thing each number or place "
    "Plan facts Go Take search image_search query_knowledge skip read take write nothing Guide Tools avoid keep more less"
).split()


def build_tokenizer(*, sight: bool = False, styled: bool = False, more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build the tokenizer: a unigram model in which every piece costs the same, so the fewest pieces win.

    With `sight` it has the tokens of a model with vision and the words of such a world besides, `styled` the words of
    wordings. `more` are further pieces.

    A word exists with and without its leading space. A proper name is a prefix and a suffix, so held-out names consist
    of known pieces. Any other text falls back to its UTF-8 bytes, so encoding and then decoding returns the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = list(dict.fromkeys([*_pieces(sight, styled), *more]))
    control = (*CONTROL, *(VISION if sight else ()))
    # Bytes come last and cost more than any run of whole pieces, so they are used only where no piece fits.
    vocabulary = [(token, 0.0) for token in (*control, *TAGS)]
    vocabulary += [(piece, -1.0) for piece in pieces]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    model = models.Unigram(vocabulary, unk_id=len(vocabulary) - 1, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        chat_template=SIGHT_TEMPLATE if sight else CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _pieces(sight: bool, styled: bool) -> list[str]:
    """Return the plain pieces in a fixed order."""
    profile = PROFILES["atlas"]
    texts = [system_prompt(profile, {}), *profile.messages.model_dump().values()]
    texts += [skill_view(markdown, "short") for markdown in load_skills().values()]
    own = {word for text in texts for word in re.findall(r"\w+", text)}
    words = own.union(WORDS, SHAPES, COLOURS, PATTERNS, COUNT_WORDS, TEXTS, MOODS, MEDIA, MATERIALS, SIDES, KINDS)
    words |= {
        *COMPANIONS,
        *SKILLS,
        *SOURCES,
        *ORDINALS,
        *(SIGHT_WORDS if sight else ()),
        *(STYLED_WORDS if styled else ()),
    }
    fragments = (*FRAGMENTS, *(SIGHT_FRAGMENTS if sight else ()))
    names = [*PREFIXES, *(" " + p for p in PREFIXES), *SUFFIXES]
    quoted = [f" '{text}'" for text in TEXTS]
    images = [f"{space}IMG_{n:03d}" for n in range(1, 31) for space in ("", " ")]
    marks = [*".,;:'\"=-!?()[]{}/_\n ", *"0123456789", " '", ' "', " ---", "- "]
    spaced = [variant for word in sorted(words) for variant in (word, " " + word)]
    return list(dict.fromkeys([*fragments, *marks, *images, *quoted, *names, *spaced]))
