"""Diffusers pipelines of a few thousand random weights, built from configs and saved in diffusers' layout; no hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = 512
SHARPEN = 4.0


def byte_tokenizer() -> Qwen2Tokenizer:
    """One token per byte, and the marks of Qwen's chat."""
    vocabulary = {token: i for i, token in enumerate([*BYTES, *MARKS])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=MARKS[1:])
    tokenizer.chat_template = CHAT
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    tokens = [*BYTES, *(byte + "</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)


def bert_tokenizer() -> BertTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, model_max_length=64)


def bert() -> BertModel:
    """With the mask of the padding, as a pipeline passes it where the config says so."""
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    config.use_attention_mask = True
    return BertModel(config)


def clip(kind: type, *, projection: int = 32) -> Any:
    size = len(BYTES) * 2 + 2
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=projection, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    return kind(config)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=37,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def kl(latent_channels: int, **changes: Any) -> AutoencoderKL:
    """Halves each side three times, as the real ones do: 64 x 64 pixels are 8 x 8 latents."""
    settings: dict[str, Any] = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "sample_size": 64,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5035,
    }
    return AutoencoderKL(latent_channels=latent_channels, **{**settings, **changes})


def qwen3(layers: int = 3) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=1024,
        )
    )  # fmt: skip


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler()


def flux_parts() -> dict[str, Any]:
    return {
        "transformer": FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
        ),
        "text_encoder": clip(CLIPTextModel),
        "text_encoder_2": t5(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": byte_tokenizer(),
        "vae": kl(4, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": flow(),
    }  # fmt: skip


def flux() -> FluxPipeline:
    return FluxPipeline(**flux_parts())


def kontext() -> FluxKontextPipeline:
    return FluxKontextPipeline(**flux_parts())


def unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **changes})


def img2img() -> StableDiffusionImg2ImgPipeline:
    return StableDiffusionImg2ImgPipeline(
        unet=unet(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        vae=kl(4, scaling_factor=0.18215, shift_factor=None),
        text_encoder=clip(CLIPTextModel), tokenizer=clip_tokenizer(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def instruct_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    """With BERT as its text encoder, as the renderer of the world `small` has it."""
    return StableDiffusionInstructPix2PixPipeline(
        unet=unet(in_channels=8), scheduler=DDIMScheduler(clip_sample=False),
        vae=kl(4, scaling_factor=0.18215, shift_factor=None),
        text_encoder=bert(), tokenizer=bert_tokenizer(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=16,
            pos_embed_max_size=16,
        ),
        text_encoder=clip(CLIPTextModelWithProjection), text_encoder_2=clip(CLIPTextModelWithProjection),
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=8, d_ff=37, num_layers=1, num_heads=4)),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), tokenizer_3=byte_tokenizer(),
        vae=kl(16, use_quant_conv=False, use_post_quant_conv=False), scheduler=flow(),
    )  # fmt: skip


def klein() -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
        ),
        text_encoder=qwen3(), tokenizer=byte_tokenizer(),
        vae=AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=64,
        ),
        scheduler=flow(), is_distilled=True,
    )  # fmt: skip


def lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
            num_kv_heads=1, multiple_of=16, axes_dim_rope=[4, 2, 2], axes_lens=[512, 64, 64], cap_feat_dim=32,
        ),
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=37, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            )
        ),
        tokenizer=byte_tokenizer(),
        vae=kl(4, use_quant_conv=False, use_post_quant_conv=False), scheduler=flow(),
    )  # fmt: skip


def z_image() -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    with torch.no_grad():  # The class leaves these two as memory left them.
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return ZImagePipeline(
        transformer=transformer, text_encoder=qwen3(2), tokenizer=byte_tokenizer(), vae=kl(16), scheduler=flow()
    )


def qwen_parts() -> dict[str, Any]:
    marks = {token: len(BYTES) + i for i, token in enumerate(MARKS)}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        image_token_id=marks["<|image_pad|>"], video_token_id=marks["<|video_pad|>"],
        vision_start_token_id=marks["<|vision_start|>"], vision_end_token_id=marks["<|vision_end|>"],
    )  # fmt: skip
    return {
        "transformer": QwenImageTransformer2DModel(
            in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        ),
        "vae": AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": byte_tokenizer(),
        "scheduler": flow(),
    }  # fmt: skip


def qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(**qwen_parts())


def qwen_edit() -> QwenImageEditPlusPipeline:
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(), byte_tokenizer(), Qwen2VLVideoProcessor())
    return QwenImageEditPlusPipeline(processor=processor, **qwen_parts())


BUILDERS: dict[str, Callable[[], Any]] = {
    "FluxKontextPipeline": kontext,
    "FluxPipeline": flux,
    "Flux2KleinPipeline": klein,
    "Lumina2Pipeline": lumina2,
    "QwenImagePipeline": qwen_image,
    "QwenImageEditPlusPipeline": qwen_edit,
    "StableDiffusion3Pipeline": sd3,
    "StableDiffusionImg2ImgPipeline": img2img,
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "ZImagePipeline": z_image,
}


def save(name: str, folder: Path) -> Path:
    """Build a pipeline with weights that depend on its name only, and save it."""
    torch.manual_seed(sum(name.encode()))
    with torch.no_grad():
        pipeline = BUILDERS[name]()
        # Weights as small as they are drawn would let noise through and little else: prompt and references must show.
        for part in (pipeline.components.get("transformer"), pipeline.text_encoder):
            for weight in part.parameters() if part is not None else ():
                if weight.ndim > 1:
                    weight.mul_(SHARPEN)
        if "Qwen" in name:  # Its decoder is pale.
            pipeline.vae.decoder.conv_out.weight.mul_(8)
        pipeline.save_pretrained(folder)
    return folder
