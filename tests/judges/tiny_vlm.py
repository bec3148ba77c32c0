"""The tiny Qwen3-VL as a chat model: a tokenizer of a few words, a template, and weights that can learn one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_vl import IMAGE, VIDEO, VISION_END, VISION_START, build_vl
from transformers import AutoModelForImageTextToText

PAD, UNKNOWN, START, END = range(4)
ANSWER = {
    "rationale": "fine",
    "faithfulness": 1,
    "visual_correctness": 0.5,
    "text_accuracy": 0,
    "aesthetics": 0.5,
    "text_accuracy_na": False,
    "facts": True,
    "reference_binding": False,
    "skill_knowledge": True,
    "executable_constraints": True,
}
WORDS = ["{", *(f"{json.dumps(k)}:{json.dumps(v)}," for k, v in ANSWER.items()), '"end":0', "}"]
"""A token is a whole field, so that each token of the answer follows from the one before it."""
LAST = [word.removesuffix(",") for word in WORDS if "_na" in word or "_constraints" in word]
"""The last fields of the judge's two schemas: with them, an answer that a schema constrains can end."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %} <|vision_start|> <|image_pad|> <|vision_end|> "
    "{% else %} {{ p.text }} {% endif %}{% endfor %}{% endif %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def build_vlm(folder: Path, context: int = 1024) -> str:
    """Write a random model with its tokenizer and template to a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    build_vl(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config))
    special = {
        "<|endoftext|>": PAD,
        "<|im_start|>": START,
        "<|im_end|>": END,
        "<|vision_start|>": VISION_START,
        "<|vision_end|>": VISION_END,
        "<|image_pad|>": IMAGE,
        "<|video_pad|>": VIDEO,
    }
    words = {"[UNK]": UNKNOWN, **special, **{word: 4 + i for i, word in enumerate(WORDS)}}
    words |= {word: 4 + len(WORDS) + i for i, word in enumerate(LAST)}
    words |= {f"w{i}": i for i in range(4 + len(WORDS) + len(LAST), VISION_START)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*special],
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder)
    generation = {"eos_token_id": END, "pad_token_id": PAD, "do_sample": True, "temperature": 0.7, "top_p": 0.8}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return str(folder)


def teach(folder: str, steps: int = 60) -> str:
    """Train the model in a folder to say ANSWER after any prompt, and write it back."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    answer = [4 + i for i in range(len(WORDS))] + [END]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        # Prompts of all lengths, of words that the tokenizer does not know.
        prompt = [START, *[UNKNOWN] * (8 + 61 * step % 480), END, START, UNKNOWN]
        tokens = torch.tensor([prompt + answer])
        labels = tokens.clone()
        labels[:, : len(prompt)] = -100
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
