"""Rules for written prompts, checked by program: what a prompt must have, and what it must not name.

A rule that no program can check (whether the picture is worth drawing, whether a fact is left open) is in the rubric of
the writer instead. Names of persons are those that the writer states, and names behind a title such as "Dr."; a person
that a model hides is not found here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from pydantic import Field, model_validator

from genevolve_ray.data.build.rows import PromptDraft, PromptRow
from genevolve_ray.data.build.taxonomy import Taxonomy, named
from genevolve_ray.records.base import Config
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.texts import HIDDEN, neutralise
from genevolve_ray.tools.skillset import load_skills

TOOLS = ("search", "image_search", "query_knowledge")
"""Names of the published tools."""
_SHOWN = 80
"""Characters of a value that a fault repeats."""
_WORD = re.compile(r"\w+")
_EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{1,63}")
_HANDLE = re.compile(r"(?<![\w.+-])@\w{2,30}")
_URL = re.compile(
    r"\b[A-Za-z][A-Za-z0-9+.-]{0,30}://\S|\bwww\.\w|\b[\w-]{1,63}\.(?:com|net|org|info|io|gov|edu)\b", re.IGNORECASE
)
_PHONE = re.compile(r"(?<![\w.,])(?:\+|00)?\(?\d[\d ()./-]{6,20}\d(?!\w)")
_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])")
_ACCOUNT = re.compile(r"\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b")
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sir|Dame)\.? [A-Z]\w{1,40}")
_DIGITS, _DIGITS_ABROAD = 9, 7
"""Digits of a telephone number, and of one that begins with + or 00; a range of years has eight."""


class PromptRule(StrEnum):
    """Name the rules, in the order in which faults are reported."""

    EMPTY = "empty"
    """There is no prompt."""
    WORDS = "words"
    """The prompt has too few or too many words."""
    CONTROL_TEXT = "control_text"
    """The prompt holds hidden characters, or a tag of the agent's protocol or of a chat template."""
    TOOL_NAME = "tool_name"
    """The prompt names a tool or a skill of the agent."""
    ENTITY = "entity"
    """The prompt does not mention one of its entities."""
    IMAGE_QUERY = "image_query"
    """The recipe needs an image search, and the writer states nothing to look up in pictures; or the reverse."""
    TEXT_QUERY = "text_query"
    """The recipe needs a text search, and the writer states no fact to look up; or the reverse."""
    VISIBLE = "visible"
    """Too few features are stated that a judge can check by eye."""
    PRIVATE = "private"
    """The prompt holds an e-mail address, telephone number, link, account, address of a machine, or a secret."""
    PERSON = "person"
    """The prompt names a real person, and its family allows none, or the person is none of its entities."""


@dataclass(frozen=True)
class RuleFault:
    """Hold one broken rule and the value that breaks it."""

    rule: PromptRule
    value: str

    def __str__(self) -> str:
        """Return the fault as rejections and repairs state it."""
        return f"{self.rule.value}: {self.value}"


class RulesConfig(Config):
    """Set the bounds of written prompts."""

    min_words: int = Field(default=20, ge=1)
    """Least words of a prompt."""
    max_words: int = Field(default=110, ge=1)
    """Most words of a prompt. The published ones have about 65 (third-party reading of the dataset card)."""
    min_visible: int = Field(default=2, ge=0)
    """Least features that a judge can check by eye."""
    forbidden_names: tuple[str, ...] | None = None
    """Names of tools and skills that no prompt may hold; by default the published tools and the project's skills."""

    @model_validator(mode="after")
    def _bounds(self) -> RulesConfig:
        if self.min_words > self.max_words:
            raise ValueError(f"no prompt can satisfy min_words={self.min_words} and max_words={self.max_words}")
        return self


class PromptRules:
    """Check drafts against the rules of one taxonomy."""

    def __init__(self, config: RulesConfig, taxonomy: Taxonomy) -> None:
        """Keep bounds and taxonomy."""
        self.config, self.taxonomy = config, taxonomy
        self._families = named(taxonomy.family.values)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = self.config.forbidden_names
        forms = map(_form, (*TOOLS, *load_skills()) if names is None else names)
        return re.compile(rf"(?<!\w)(?:{'|'.join(forms) or r'(?!)'})", re.IGNORECASE)

    def faults(self, draft: PromptDraft, row: PromptRow) -> list[RuleFault]:
        """Return the rules that a draft for a row breaks, in the order of `PromptRule`; [] for a good one.

        Raises:
            ValueError: when the taxonomy does not have the family of the row.
        """
        if not draft.prompt.strip():
            return [RuleFault(PromptRule.EMPTY, "there is no prompt")]
        found = [*self._form_faults(draft), *self._search_faults(draft, row)]
        found += [RuleFault(PromptRule.PRIVATE, value) for value in private_values(_texts(draft))]
        return found + [RuleFault(PromptRule.PERSON, value) for value in self._persons(draft, row)]

    def _form_faults(self, draft: PromptDraft) -> Iterator[RuleFault]:
        config, prompt = self.config, draft.prompt
        words = len(prompt.split())
        if not config.min_words <= words <= config.max_words:
            yield RuleFault(PromptRule.WORDS, f"{words} words instead of {config.min_words} to {config.max_words}")
        if hidden := HIDDEN.search(prompt):
            yield RuleFault(PromptRule.CONTROL_TEXT, f"hidden character U+{ord(hidden.group()):04X}")
        if neutralise(prompt) != prompt:
            yield RuleFault(PromptRule.CONTROL_TEXT, "a tag of the protocol, or half a surrogate pair")
        if name := self._names.search(prompt):
            yield RuleFault(PromptRule.TOOL_NAME, repr(name.group()))

    def _search_faults(self, draft: PromptDraft, row: PromptRow) -> Iterator[RuleFault]:
        for entity in row.entities:
            if not mentions(draft.prompt, entity):
                yield RuleFault(PromptRule.ENTITY, f"{entity!r} is not mentioned")
        for rule, query, needed in (
            (PromptRule.IMAGE_QUERY, draft.image_query, row.image_search),
            (PromptRule.TEXT_QUERY, draft.text_query, row.text_search),
        ):
            if needed and not query.strip():
                yield RuleFault(rule, "is empty, and the recipe needs this search")
            elif query.strip() and not needed:
                yield RuleFault(rule, f"{query[:_SHOWN]!r} is stated, and the recipe needs no such search")
        stated = sum(1 for feature in draft.visible if feature.strip())
        if stated < self.config.min_visible:
            yield RuleFault(PromptRule.VISIBLE, f"{stated} features instead of at least {self.config.min_visible}")

    def _persons(self, draft: PromptDraft, row: PromptRow) -> Iterator[str]:
        if row.family not in self._families:
            raise ValueError(f"row {row.id}: taxonomy {self.taxonomy.name!r} has no family {row.family!r}")
        people = self._families[row.family].people
        stated = [*(name for name in draft.people if name.strip()), *_TITLE.findall(draft.prompt)]
        for name in dict.fromkeys(stated):
            if not people:
                yield f"{name[:_SHOWN]!r}, and family {row.family} names no persons"
            elif not any(mentions(name, entity) or mentions(entity, name) for entity in row.entities):
                yield f"{name[:_SHOWN]!r} is none of the entities"


def private_values(text: str) -> Iterator[str]:
    """Yield the kinds of private values in a text: never the values themselves."""
    kinds = {
        "e-mail address": _EMAIL,
        "handle": _HANDLE,
        "link": _URL,
        "machine address": _ADDRESS,
        "account": _ACCOUNT,
    }
    yield from (kind for kind, pattern in kinds.items() if pattern.search(text))
    if any(map(_is_phone, _PHONE.findall(text))):
        yield "telephone number"
    if redacted(text) != text:
        yield "secret"


def name_key(name: str) -> str:
    """Return the form in which names are compared: compatible letters, no case, accents or punctuation."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    plain = "".join(letter for letter in folded if not "\u0300" <= letter <= "\u036f")
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", plain).replace("_", " ")))


def mentions(text: str, name: str) -> bool:
    """Return whether a text holds a name as whole words; in scripts that write no spaces, anywhere."""
    key, inside = name_key(name), name_key(text)
    return bool(key) and (f" {key} " in f" {inside} " or (not key.isascii() and key in inside))


def _is_phone(text: str) -> bool:
    digits = sum(letter.isdigit() for letter in text)
    return digits >= (_DIGITS_ABROAD if text.startswith(("+", "00")) else _DIGITS)


def _form(name: str) -> str:
    """Return a pattern for a name. One plain word counts only as a name of a tool: "search" is a word like any other."""
    words = [re.escape(word) for word in re.split(r"[_\s-]", name) if word]
    if len(words) == 1:
        return rf"{words[0]}(?: (?:tool|skill|function)\b|\()"
    return rf"{'[ _-]'.join(words)}(?!\w)"


def _texts(draft: PromptDraft) -> str:
    parts: Iterable[str] = (draft.prompt, draft.image_query, draft.text_query, *draft.visible)
    return "\n".join(parts)
