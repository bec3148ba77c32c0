"""Sentence embeddings from a tiny random model: pooling, padding on either side, and length one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genevolve_ray.errors import InfraFailure
from genevolve_ray.experience.config import EmbedderConfig, TransformersEmbedderConfig
from genevolve_ray.experience.embed_transformers import TransformersEmbedder, pool
from genevolve_ray.experience.factory import build_embedder

TEXTS = ["show name", "show name with its moon on the left, in mosaic", "a", "two flags of glass and metal"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of two layers with a word tokenizer that ends every text with its mark, as Qwen3-Embedding does."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    folder = tmp_path_factory.mktemp("embedder")
    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})
    vocabulary = {word: i for i, word in enumerate(["<end>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    Qwen3Model(config).float().save_pretrained(folder)
    return folder


def embedder(folder: Path, **settings: object) -> TransformersEmbedder:
    values = {"model": str(folder), "batch_size": 4, **settings}
    built = build_embedder(EmbedderConfig(kind="transformers", transformers=TransformersEmbedderConfig(**values)))  # type: ignore[arg-type]
    assert isinstance(built, TransformersEmbedder)
    return built


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
async def test_a_text_has_one_embedding_whatever_pads_it(tiny: Path, pooling: str, side: str) -> None:
    model = embedder(tiny, pooling=pooling)
    model._tokenizer.padding_side = side
    together = await model.embed(TEXTS)
    assert (together.shape, together.dtype) == ((4, 32), np.float32)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    alone = np.concatenate([await model.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


async def test_pooling_is_that_of_a_plain_forward(tiny: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tiny)(TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(tiny)(**tokens).last_hidden_state[0]
    for pooling, vector in (("last", hidden[-1]), ("mean", hidden.mean(dim=0))):
        found = (await embedder(tiny, pooling=pooling).embed([TEXTS[1]]))[0]
        np.testing.assert_allclose(found, (vector / vector.norm()).numpy(), atol=1e-5)


def test_padding_is_left_out_of_the_pool() -> None:
    import torch

    hidden = torch.tensor([[[1.0], [2.0], [9.0]], [[9.0], [3.0], [5.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(hidden, mask, "last").tolist() == [[2.0], [5.0]]
    assert pool(hidden, mask, "mean").tolist() == [[1.5], [4.0]]


async def test_long_texts_are_cut_and_batches_keep_the_order(tiny: Path) -> None:
    texts = [*TEXTS, TEXTS[1] * 30, ""]
    rows = await embedder(tiny, batch_size=2, max_tokens=6).embed(texts)
    again = await embedder(tiny, batch_size=6, max_tokens=6).embed(texts)
    np.testing.assert_allclose(rows, again, atol=1e-5)
    assert (await embedder(tiny).embed([])).shape == (0, 32)


async def test_a_prefix_stands_before_every_text(tiny: Path) -> None:
    prefixed = await embedder(tiny, prefix="show ").embed(["name"])
    np.testing.assert_array_equal(prefixed, await embedder(tiny).embed(["show name"]))


async def test_a_tokenizer_without_marks_still_embeds_an_empty_text(tiny: Path) -> None:
    from tokenizers import processors

    model = embedder(tiny)
    model._tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    for texts in ([""], ["", TEXTS[0]]):
        assert np.isfinite(await model.embed(texts)).all()


async def test_half_precision_comes_back_as_single(tiny: Path) -> None:
    rows = await embedder(tiny, dtype="bfloat16").embed(TEXTS)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, await embedder(tiny).embed(TEXTS), atol=0.05)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedder.transformers.model=.*nowhere"):
        embedder(tmp_path / "nowhere")


@pytest.mark.parametrize("error", [ValueError("odd"), TypeError("odd"), RuntimeError("odd")])
async def test_any_error_on_a_text_is_a_failure_of_the_embedder(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = TransformersEmbedder.__new__(TransformersEmbedder)
    embedder.config, embedder.identity = TransformersEmbedderConfig(model="m"), "e"

    def fails(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(embedder, "_embed", fails)
    with pytest.raises(InfraFailure, match=f"{type(error).__name__}: odd"):
        await embedder.embed(["a"])
