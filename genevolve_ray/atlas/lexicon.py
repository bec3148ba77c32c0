"""The words that a generator of the atlas understands, as regular expressions over normalized clauses.

A normalized clause is lower-case words joined by single spaces. `@3` stands for the third unknown capitalized word of
the prompt (a name), and `#1` for the first quoted text.
"""

from __future__ import annotations

import re
from enum import StrEnum
from types import MappingProxyType

from genevolve_ray.atlas.scene import COLOURS, COMPANIONS, COUNT_WORDS, KINDS, PATTERNS, SHAPES


def _table(**synonyms: str) -> MappingProxyType[str, str]:
    """Return the mapping from word to meaning for arguments of the form meaning="several words"."""
    return MappingProxyType({word: meaning for meaning, words in synonyms.items() for word in words.split()})


COUNTS = MappingProxyType(
    {word: n for n, word in enumerate(COUNT_WORDS)}
    | {"six": 6, "seven": 7, "eight": 8, "nine": 9, "single": 1, "pair": 2, "trio": 3, "both": 2}
)
ORDINAL_WORDS = MappingProxyType(
    {w: n for n, w in enumerate("first second third fourth fifth".split(), start=1)}
    | {"1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "5th": 5}
)
COLOUR_WORDS = MappingProxyType(
    {c: c for c in COLOURS} | _table(red="crimson scarlet", teal="turquoise cyan", purple="violet", pink="rose magenta")
)
PATTERN_WORDS = MappingProxyType(
    {p: p for p in PATTERNS}
    | _table(
        striped="stripes stripe", dotted="dots spotted spots", checked="checkered checks chequered", plain="unpatterned"
    )
)
MATERIAL_WORDS = _table(glass="glass glassy", metal="metal metallic steel iron bronze", wood="wood wooden timber")
MOOD_WORDS = _table(
    calm="calm serene peaceful tranquil quiet gentle",
    festive="festive joyful joyous celebratory merry cheerful",
    dusk="dusk dusky twilight sunset evening",
)
MEDIUM_WORDS = _table(
    mosaic="mosaic mosaics tesserae", woodcut="woodcut woodcuts woodblock linocut", crayon="crayon crayons waxcrayon"
)
NOUNS = MappingProxyType(
    {form: noun for noun in (*KINDS, *COMPANIONS, *SHAPES) for form in (noun, noun + "s", noun + "es")}
)

COUNT = "|".join(COUNTS) + r"|x ?\d{1,3}|\d{1,3} ?x|\d{1,3}"
COLOUR = "|".join(COLOUR_WORDS)
PATTERN = "|".join(PATTERN_WORDS)
MATERIAL = "|".join(MATERIAL_WORDS)
_NOUN = "|".join(sorted(NOUNS, key=len, reverse=True))
_DET = r"(?:the|a|an|its|one|this|that|each|all|every)"
PLACE_NOUN = (
    r"(?:bottom|foot|base|top|strip|edge|middle|center|centre|banner|scroll|plaque|sign|board|ribbon|label|plate|caption|below"
    r"|underneath|beneath)"
)

# --- one part -------------------------------------------------------------------------------------------------------

HEAD = re.compile(
    rf"(?:\b(?:and|with|plus|beside|near|next to|while)\s+)*(?:\b(?:the|a|an|exactly|just)\s+)*"
    rf"(?:\b(?P<count>{COUNT})\b(?:\s+(?:of|identical|equal|separate|the))*\s+)?"
    rf"(?P<adjectives>(?:(?:{COLOUR}|{PATTERN}|{MATERIAL}|small|large|big|little|bright|deep)\s+)*)"
    rf"(?P<name>@\d+(?: @\d+)*|\b(?:{_NOUN})\b)"
)
REFERENCE = re.compile(
    rf"\b(?P<word>{'|'.join(ORDINAL_WORDS)}) (?:reference|ref)\b(?: (?:image|picture|photo))?"
    r"|\b(?:reference|ref)(?: (?:image|picture|photo))? (?:no |number )?(?P<digit>[1-5])\b"
)
LEGS = re.compile(
    rf"\b(?P<count>{COUNT}|a|an)(?: (?:{COLOUR}|long|short|straight|sturdy|slender|equal|thin|strong))* (?:legs?|feet|limbs?)\b"
    rf"|\b(?P<legged>{COUNT}) legged\b"
)
JOINED = re.compile(
    r"\b(?:join(?:s|ed|ing)?|attach(?:es|ed)?|connect(?:s|ed|ing)?|fixed|rooted|grow(?:s|ing)?|meet(?:s|ing)?|set|hang(?:s|ing)?"
    r"|fastened|fused|anchored)\b(?: \w+){0,4}? (?:body|torso|trunk|belly|underside|hip|hips)\b"
)
MATERIAL_LIGHT = re.compile(
    r"\b(?:edges?|edged|highlights?|highlighted|reflections?|reflects?|reflecting|reflective|sheen|shines?|shining|shiny|gleams?"
    r"|gleaming|glints?|glinting|rims?|gloss|glossy|specular|grain|grained|sparkles?|refraction|refracting)\b"
)
ARRANGED = re.compile(
    r"\b(?:in|as|into|along|forming|on) (?:(?:a|an|one|two|three|neat|single|straight|even|evenly|spaced|clear|tidy|horizontal"
    r"|vertical) )+(?:rows?|lines?|columns?|grid|ring|circle|arc|stack|pyramid|triangle|cluster|file)\b"
    r"|\bin (?:rows|columns|lines)\b|\bside by side\b|\bnext to each other\b|\bone (?:beside|above|after|behind|next to) (?:the other|another)\b"
    r"|\b(?:lined|stacked|arranged|aligned|spaced)(?: (?:up|evenly|apart))?\b|\bevenly spaced\b|\bapart from each other\b"
)
PLACED = re.compile(
    r"\b(?:at|on|in|to|along|near|within|inside|over|across|fill(?:s|ing)|occup(?:ies|ying)|toward|towards|against|from)"
    rf" (?:{_DET} )?(?:far |whole |entire |lower |upper )?(?P<side>left|right)"
    r"(?:(?: hand)?(?: (?:side|half|part|portion|edge|third|area|section|margin|of))\b|(?<=\bthe left)\b|(?<=\bthe right)\b)"
    r"|\b(?P<half>left|right)(?: hand)? (?:side|half|part|portion|third|section)\b"
)
BARE_SIDE = re.compile(r"\b(?P<side>left|right)\b")

# --- the whole picture ----------------------------------------------------------------------------------------------

TEXT_WORDS = frozenset(
    "text word words letters lettering caption title label sign inscription say saying says read reading reads".split()
)
"""Directly after one of these, a word in capitals is a text even when it also means something."""
TEXT = re.compile(
    r"\b(?:the |a |an )?(?:text|words?|letters?|lettering|inscription|inscribed|caption|captioned|title|titled|label|labelled"
    r"|labeled|sign|saying|says?|reading|reads|written|writing|spelling|spells?|engraved)\b"
    r"(?: (?:the|that|which|is|it|a|an|with|of|text|words?|letters?|lettering|says?|saying|reads|reading|spelling|black|bold|clear"
    r"|large|printed|written))*(?: (?P<body>[#@]?\w+))?"
)
QUOTED = re.compile(r"#\d+")
TEXT_PLACE = re.compile(
    rf"^(?: (?:is|stands|placed|written|printed|set|centred|centered|in|black|bold|clear|letters|letter|by))*"
    rf"(?: (?:at|on|in|along|across|below|under|underneath|beneath|near|over)) (?:{_DET} )?(?:\w+ )?{PLACE_NOUN}\b(?: of (?:the )?\w+)?"
    rf"|^ (?:below|underneath|beneath)\b(?: (?:the )?(?:things?|picture|scene|image|figures?))?"
)
MOOD = re.compile(rf"\b(?P<mood>{'|'.join(MOOD_WORDS)})\b(?: (?:mood|atmosphere|feeling|tone|air))?")
SCENE_LIGHT = re.compile(
    r"\b(?:light|lit|lighting|lights|lighted|glow|glows|glowing|illuminated|illumination|sunlight|moonlight|lamplight|rays|beams|backlit"
    r"|shining|shines)\b(?: \w+){0,3}? (?:from|above|below|behind|through|overhead)\b"
    r"(?: (?:the |a )?(?:upper |lower |top |far )?(?:left|right|above|below|behind|top|side|front|back|overhead|sky|sun|horizon|corner)\b)*"
)
MEDIUM = re.compile(
    rf"\b(?:in |as |like )?(?:the |a |an )?(?P<medium>{'|'.join(MEDIUM_WORDS)})\b(?: (?:style|texture|strokes?|lines?|tiles?|medium|hatching|technique))*"
)
APPLIED = re.compile(
    r"\b(?:over|on|in|across|throughout|through|to|covers?|covering|filling|fills?|for|of)(?: all)? (?:every|all|each|the whole|the entire|everything)\b"
    r"(?: of)?(?: the)?(?: (?:parts?|things?|surfaces?|picture|image|scene|shapes?|objects?|area|canvas))?"
    r"|\beverywhere\b|\bthroughout\b|\ball over\b|\b(?:whole|entire|every) (?:picture|image|scene|surface|part)\b"
)

FILLER = frozenset(
    """a about above across after against all along also an and another apart are arranged as at background be behind below beneath
    beside between big black bold both bottom bright by canvas cast center centered centre centred clear close colour color coloured
    composition consistent corner create deep depict depicted detail detailed distinct draw drawing drawn each edge either empty
    equal every everything exactly far figure figures for foreground form four from front full generate ground half has have holds image
    in inside into is it its just keep large lighting like little made make mood near next no not object of on one only opposite
    or other over paint painting part picture place placed placement please position positioned reference render row scene separate
    set shaped shape show showing side simple single small so soft space stand standing stands strip style subject text that the their
    them then there these they thing things this three to together top toward two under up use using view warm white wide with without
    words pale clean facing resting sits sitting hangs same size sizes spaced evenly overall crisp sharp photo exact look looks shown
    appearance match matching follows following lines line legs leg body edges highlight highlights reflection light lit""".split()
)
"""Words that are never names, even with a capital letter at the start of a sentence."""


def _words_of(*patterns: str) -> frozenset[str]:
    return frozenset(w for p in patterns for w in re.findall(r"[a-z]{3,}", p))


KNOWN = (
    FILLER
    | _words_of(
        *(p.pattern for p in (JOINED, MATERIAL_LIGHT, ARRANGED, PLACED, TEXT, TEXT_PLACE, SCENE_LIGHT, MEDIUM, APPLIED))
    )
    | {
        *COUNTS,
        *ORDINAL_WORDS,
        *COLOUR_WORDS,
        *PATTERN_WORDS,
        *MATERIAL_WORDS,
        *MOOD_WORDS,
        *MEDIUM_WORDS,
        *NOUNS,
        *KINDS,
    }
)


PREFIXES = tuple(
    "Vel Or Ka Thal Mir Zan Quor Bel Dra Fen Gal Hes Ir Jun Kel Lor Mav Ner Osk Pel Ras Syl Tor Ul Vash Wen Xan Yor "
    "Zeb Ash Bru Cal".split()
)
SUFFIXES = tuple(
    "mora vane din tara lith gor ssa nath bria doon wick fell haven quill rune stead thorn vale wyn zor mere lan keth "
    "jara ion holm grim eth dusk cairn brook aris".split()
)


class Partition(StrEnum):
    """Name the part of the name space that a world draws from; the parts are disjoint for all seeds."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


def names_of(partition: Partition) -> list[str]:
    """Return every proper name of a partition: 80% / 10% / 10% of all prefix-suffix pairs.

    Each prefix and each suffix occurs in every partition. A policy has therefore seen all pieces, but never a held-out
    name.
    """
    places = {Partition.TRAIN: range(8), Partition.VALIDATION: range(8, 9), Partition.TEST: range(9, 10)}[partition]
    return [p + s for i, p in enumerate(PREFIXES) for j, s in enumerate(SUFFIXES) if (i + 3 * j) % 10 in places]
