"""Texts that models read: replaceable prompts and rubrics, and neutralized external text."""

from __future__ import annotations

import importlib
import re
import unicodedata
from pathlib import Path

IMAGE_MARK = "<image>"
"""Place of a picture in a text, as in published rows; foreign text never contains it."""
_OPENING = re.compile(r"[<＜﹤\[［﹇]")
"""The opening brackets, and the characters that Unicode's compatibility folding turns into one."""
_TAG = re.compile(
    r"\s*+(?:/\s*+)?(?:(?:think|tool_call|tool_response|tools?|answer|image|img|video|audio|s|sys|system|user|assistant"
    r"|bos|eos|pad|unk|mask|sep|cls|bos_token|eos_token|sop|eop|box|ref|quad|function_calls?|scratch_?pad|im_(?:start|end"
    r"|patch)|img_context|(?:start|end)_of_(?:turn|image|audio|speech)|begin_of_text|end_of_text|unused\d+"
    r"|extra_id_\d+|special_\d+|(?:image|video|audio)_soft_token|image_pad|seed:\w+)\s*+(?:/\s*+)?>"
    r"|(?:think|tool_call|tool_response|answer)\b"  # The protocol's own tags, also with attributes or unclosed.
    r"|[|｜])",
    re.IGNORECASE,
)
_MARK = re.compile(
    r"\s*+(?:/\s*+)?(?:(?:inst|sys|system_prompt|available_tools|tool_calls|tool_results|tool_content|args|call_id"
    r"|think|prefix|middle|suffix|img|img_break|img_end|begin_image|audio|begin_audio|gmask|smask|mask|bos|eos|pad|unk"
    r"|sep|cls)\s*+\]|[|｜])",
    re.IGNORECASE,
)
"""Control tokens in square brackets: [INST], [/INST], [gMASK], [|user|]."""
_TAG_CHARS = 64
"""Longest tag that is searched for."""
HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f\x80-\x84\x86-\x9f"  # control characters that are no white space
    "\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible; direction of writing
    "\U000e0000-\U000e0fff"  # tag characters and further variation selectors: text within text
    "]|(?<=[\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?=[\x00-\x7f])"  # joiners, which only other scripts need
)
"""Characters that are invisible."""
_IMAGE_ID = re.compile(r"IMG_(?=\d{3})", re.IGNORECASE)


def neutralise(text: str) -> str:
    """Return external text in which no protocol tag or control token can be read: its "<" becomes "‹", its "[" "⟦".

    Tags count in any case, with spaces or hidden characters inside, and in letters that Unicode folds to plain ones.
    Half surrogate pairs, which no tokenizer can encode, become "?".
    """
    return _OPENING.sub(lambda found: _bracket(text, found), text).encode(errors="replace").decode()


def without_image_ids(text: str) -> str:
    """Return external text without hidden characters, in which no image id can be read: IMG_001 becomes IMG-001."""
    return _IMAGE_ID.sub("IMG-", HIDDEN.sub("", text))


def _bracket(text: str, found: re.Match[str]) -> str:
    follows = HIDDEN.sub("", text[found.end() : found.end() + _TAG_CHARS]).replace("\u200c", "").replace("\u200d", "")
    square = unicodedata.normalize("NFKC", found.group()) == "["
    folded = unicodedata.normalize("NFKC", follows)
    if not (_MARK.match(folded) if square else _TAG.match(folded)):
        return found.group()
    return "⟦" if square else "‹"


def load_text(source: str, folder: Path, what: str, *, exact: bool = False) -> str:
    """Return the text that `source` names; it ends in a line break unless it is wanted `exact`.

    Args:
        source: `name` for `folder/name.md`, a path, or `module:attribute`.
        folder: the folder of the project's own texts of this kind.
        what: the kind of text, for messages.
        exact: whether the text stays as it is.

    Raises:
        ValueError: naming the source, when it is neither a text of the project, a file, nor `module:attribute`.
    """
    own, file = folder / f"{source}.md", Path(source)
    module, colon, attribute = source.partition(":")
    if "/" not in source and own.is_file():
        text = own.read_text(encoding="utf-8")
    elif file.is_file():
        text = file.read_text(encoding="utf-8-sig")
    elif colon and module.replace(".", "_").isidentifier():
        try:
            text = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # an imported module may raise anything
            raise ValueError(f"{what} {source!r}: {type(error).__name__}: {error}") from error
    else:
        raise ValueError(f"{what} {source!r} is neither a known text, a file, nor module:attribute")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} {source!r} is not a text")
    return text if exact or text.endswith("\n") else text + "\n"
