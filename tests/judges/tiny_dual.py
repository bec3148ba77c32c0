"""Random dual encoders of a few thousand weights, CLIP and SigLIP, with a tokenizer of words and a real processor."""

from __future__ import annotations

from pathlib import Path

LIMIT = 12
"""Tokens that the text towers read."""
_WORDS = "a red blue green lantern sign picture of the with".split()


def build_dual(folder: Path, kind: str) -> str:
    """Write a model of a kind (`clip` or `siglip`) to a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
    )

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<start>", "<end>", *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = "<start> $A <end>" if kind == "clip" else "$A <end>"
    ends = [("<start>", 2), ("<end>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LIMIT, **names)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(vocabulary), "max_position_embeddings": LIMIT}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
        pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        CLIPProcessor(pictures, fast).save_pretrained(folder)
    else:
        config = SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
        SiglipModel(config).save_pretrained(folder)
        SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 16}), fast).save_pretrained(folder)
    return str(folder)
