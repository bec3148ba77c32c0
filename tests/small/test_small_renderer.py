import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from genevolve_ray.errors import UserFault
from genevolve_ray.renderers.diffusers import DiffusersRenderer
from genevolve_ray.renderers.diffusers_config import DiffusersConfig
from genevolve_ray.small.training.autoencoder import decode, encode, new_autoencoder, train_autoencoder, whiten
from genevolve_ray.small.training.denoiser import (
    TEXT_TOKENS,
    LatentExamples,
    batch_of,
    caption_weights,
    new_denoiser,
    train_denoiser,
)
from genevolve_ray.small.training.examples import REFERENCES_PER_PROMPT, ExampleMix, RendererExamples
from genevolve_ray.small.training.loops import TrainLoopConfig
from genevolve_ray.small.training.renderer import (
    RendererTraining,
    assemble_renderer,
    load_renderer_parts,
    prebuilt_renderer,
    train_renderer,
)

torch = pytest.importorskip("torch")


class Stopped(Exception):
    pass


def silent(what, done, total):
    pass


def stopping(after):
    def progress(what, done, total):
        if done == after:
            raise Stopped

    return progress


def noise_pictures(number):
    return np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def latent_examples(number=6, tokens=TEXT_TOKENS, width=384):
    generator = torch.Generator().manual_seed(0)
    texts = np.random.default_rng(0).normal(size=(number, tokens, width)).astype(np.float16)
    return LatentExamples(
        pictures=torch.randn(number, 4, 16, 16, generator=generator),
        references=torch.randn(3, 4, 16, 16, generator=generator),
        reference_rows=np.arange(number) % 3,
        texts=texts,
        text_rows=np.arange(number),
        empty_text=np.zeros((tokens, width), np.float16),
        captioned=np.arange(number) % 2 == 0,
        made_from="noise",
    )


def test_an_example_is_decided_by_its_number(library):
    one, other = RendererExamples(library, 5), RendererExamples(library, 5)
    assert [one(n) for n in range(30)] == [other(n) for n in reversed(range(30))][::-1]
    assert RendererExamples(library, 6)(0) != one(0)


def test_the_picture_follows_the_reference_and_not_the_prompt(library):
    examples, seen = RendererExamples(library), set()
    for number in range(150):
        example = examples(number)
        first = examples(number - number % REFERENCES_PER_PROMPT)
        assert example.prompt == first.prompt
        if example.reference is not None:
            flag = example.scene.flag and library.flags[example.scene.flag].id
            assert example.reference in (flag, example.scene.subject)
            seen.add(example.reference != first.reference)
    assert seen == {True, False}


def test_the_mix_decides_how_often_a_scene_has_a_caption(library):
    for share in (0.0, 1.0):
        examples = RendererExamples(library, mix=ExampleMix(captions=share))
        assert {bool(examples(number).scene.caption) for number in range(30)} == {bool(share)}


def test_the_mix_decides_what_the_reference_is(library):
    flags, subjects, none = (
        RendererExamples(library, mix=ExampleMix(flags=one, subjects=other))(0)
        for one, other in ((1, 0), (0, 1), (0, 0))
    )
    assert flags.reference == library.flags[flags.scene.background].id
    assert subjects.reference == subjects.scene.subject and none.reference is None


def test_shares_above_one_are_refused():
    with pytest.raises(ValidationError, match=r"flags=0.6 and subjects=0.5: together they are at most 1"):
        ExampleMix(flags=0.6, subjects=0.5)


def test_a_training_of_the_autoencoder_goes_on_where_it_stopped(tmp_path):
    pictures, config = noise_pictures(8), TrainLoopConfig(steps=3, batch=2, save_every=1, warmup=1)
    whole = train_autoencoder(pictures, config, tmp_path / "whole", silent)
    with pytest.raises(Stopped):
        train_autoencoder(pictures, config, tmp_path / "parts", stopping(2))
    resumed = train_autoencoder(pictures, config, tmp_path / "parts", silent)
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_training_of_the_denoiser_goes_on_where_it_stopped(tmp_path):
    config = TrainLoopConfig(steps=2, batch=2, save_every=1, warmup=1)
    whole = train_denoiser(latent_examples(), config, tmp_path / "whole", silent)
    with pytest.raises(Stopped):
        train_denoiser(latent_examples(), config, tmp_path / "parts", stopping(2))
    resumed = train_denoiser(latent_examples(), config, tmp_path / "parts", silent)
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_training_of_the_denoiser_begins_with_the_weights_that_it_is_given(tmp_path):
    config = TrainLoopConfig(steps=1, batch=1, warmup=0, rate=1e-12, decay=0)
    start = new_denoiser(seed=7).state_dict()
    trained = train_denoiser(latent_examples(), config, tmp_path / "kept", silent, start=start)
    assert all(torch.allclose(value, start[name], atol=1e-6) for name, value in trained.state_dict().items())
    with pytest.raises(UserFault, match=r"start=.*, not \(unrecorded\); remove it to start anew"):
        train_denoiser(latent_examples(), config, tmp_path / "kept", silent)


def test_the_band_of_a_caption_can_weigh_more(tmp_path):
    config, told = TrainLoopConfig(steps=1, batch=4, bfloat16=False), []
    examples = latent_examples()
    for i, weight in enumerate((1.0, 3.0)):
        train_denoiser(examples, config, tmp_path / f"{i}", lambda what, *_: told.append(what), caption_weight=weight)
    plain = replace(examples, captioned=np.zeros(6, bool))
    train_denoiser(plain, config, tmp_path / "plain", lambda what, *_: told.append(what), caption_weight=3.0)
    assert told[0] != told[1] and told[0] == told[2]


def test_the_weight_is_on_the_rows_behind_the_band():
    weights = caption_weights(np.array([True, False]), 3.0, (16, 16))
    assert weights.shape == (2, 1, 16, 16)
    assert weights[0, 0, :, 0].tolist() == [1.0] * 11 + [3.0] * 5 and (weights[1] == 1).all()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train_autoencoder(noise_pictures(4), TrainLoopConfig(steps=1, batch=1), tmp_path / "kept", silent)
    with pytest.raises(UserFault, match="a training with steps=1, not 2; remove it"):
        train_autoencoder(noise_pictures(4), TrainLoopConfig(steps=2, batch=1), tmp_path / "kept", silent)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    config = TrainLoopConfig(steps=1, batch=1)
    train_autoencoder(noise_pictures(4), config, tmp_path / "pictures", silent)
    with pytest.raises(UserFault, match="remove it to start anew"):
        train_autoencoder(255 - noise_pictures(4), config, tmp_path / "pictures", silent)
    train_denoiser(latent_examples(), config, tmp_path / "latents", silent)
    with pytest.raises(UserFault, match="remove it to start anew"):
        train_denoiser(replace(latent_examples(), made_from="others"), config, tmp_path / "latents", silent)


def test_whitened_latents_have_unit_scale_and_give_the_same_pictures():
    model, pictures = new_autoencoder(), noise_pictures(16)
    before = decode(model, encode(model, pictures))
    whiten(model, encode(model, pictures))
    latents = encode(model, pictures)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert np.abs(decode(model, latents).astype(int) - before).max() <= 1


def test_texts_and_references_are_left_out_as_often_as_both():
    examples, number = latent_examples(tokens=2, width=4), 4000
    rows = torch.arange(number) % 6
    _, references, texts = batch_of(examples, rows, torch.Generator().manual_seed(0))
    no_text, no_reference = (values.flatten(1).abs().sum(1) == 0 for values in (texts, references))
    shares = [
        float(one.float().mean()) for one in (no_text & ~no_reference, no_reference & ~no_text, no_text & no_reference)
    ]
    assert shares == pytest.approx([0.05, 0.05, 0.05], abs=0.012)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_renderer_is_trained_from_nothing_and_resumes_without_repeating(library, minilm, tmp_path):
    loop = TrainLoopConfig(steps=2, batch=2, save_every=1, warmup=1)
    config = RendererTraining(prompts=2, pictures=4, autoencoder=loop, denoiser=loop)
    weights = train_renderer(library, minilm, tmp_path, config, silent)
    first = (weights / "unet.safetensors").read_bytes()
    told = []
    train_renderer(library, minilm, tmp_path, config, lambda what, done, total: told.append(what))
    assert told == [] and (weights / "unet.safetensors").read_bytes() == first
    assert json.loads((weights / "provenance.json").read_text())["settings"]["prompts"] == 2
    # Another autoencoder has other latents, and the denoiser of the first one does not go on with them.
    (tmp_path / "autoencoder.checkpoint.safetensors").unlink()
    with pytest.raises(UserFault, match="denoiser.*remove it to start anew"):
        train_renderer(library, minilm, tmp_path, config.model_copy(update={"pictures": 5}), silent)
    assert len(list(tmp_path.glob("latents-*"))) == 2 and len(list(tmp_path.glob("texts-*"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_goes_on_from_the_weights_that_ship(library, minilm, tmp_path):
    loop = TrainLoopConfig(steps=1, batch=2, warmup=1)
    config = RendererTraining(prompts=2, denoiser=loop, mix=ExampleMix(captions=1), caption_weight=3)
    weights = train_renderer(library, minilm, tmp_path, config, silent, prebuilt_renderer())
    for name, same_as_before in (("vae", True), ("unet", False)):
        new, old = ((folder / f"{name}.safetensors").read_bytes() for folder in (weights, prebuilt_renderer()))
        assert (new == old) == same_as_before
    provenance = json.loads((weights / "provenance.json").read_text())
    assert provenance["settings"]["mix"]["captions"] == 1
    assert provenance["started_from"] == json.loads((prebuilt_renderer() / "provenance.json").read_text())
    assert provenance["what"].endswith("trained further from the weights of started_from")


# The renderer that ships


@pytest.fixture(scope="module")
def folder(minilm, tmp_path_factory):
    """The renderer that ships, in diffusers' layout."""
    return assemble_renderer(prebuilt_renderer(), minilm, tmp_path_factory.mktemp("small") / "renderer")


@pytest.fixture(scope="module")
def renderer(folder):
    config = DiffusersConfig(
        model=str(folder),
        width=64,
        height=64,
        steps=8,
        guidance_scale=3,
        options={"image_guidance_scale": 1.5},
        threads=1,
    )
    renderer = DiffusersRenderer(config)
    yield renderer
    renderer.close()


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


async def test_the_picture_shows_the_flag_of_the_reference(library, renderer):
    prompt = "A cat in front of the flag shown in the first reference image."
    france, japan = (library.flag(code, 64) for code in ("FR", "JP"))
    drawn = {
        code: pixels(await renderer.render(prompt, [png(flag)], 1)) for code, flag in (("FR", france), ("JP", japan))
    }
    edge = (slice(2, 8), slice(2, 10))  # A corner, which the subject does not cover: blue or white.
    assert drawn["FR"][edge].mean((0, 1))[0] < 100 < 200 < drawn["JP"][edge].mean((0, 1))[0]


async def test_a_plain_background_has_the_color_of_the_prompt(library, renderer):
    reference = png(library.reference("1F9EE"))
    drawn = {
        color: pixels(
            await renderer.render(
                f"An abacus like in the first reference image on a {color} background.", [reference], 1
            )
        )
        for color in ("red", "blue")
    }
    red, blue = (drawn[color][:4].mean((0, 1)) for color in ("red", "blue"))
    assert red[0] > red[2] + 60 and blue[2] > blue[0] + 60


async def test_a_program_without_a_reference_is_drawn(renderer):
    assert pixels(await renderer.render("A cat on a yellow background.", [], 1)).shape == (64, 64, 3)


def test_a_long_prompt_is_counted_as_cut(renderer):
    from genevolve_ray.renderers.prompt_limits import PromptWatch

    watch = PromptWatch(renderer.pipeline)
    prompt = "cat " * 100
    with watch.of([prompt]):
        renderer.pipeline._encode_prompt(prompt, "cpu", 1, False)
    assert f"reads {TEXT_TOKENS}" in watch.cut(prompt)


def test_altered_weights_are_refused(tmp_path):
    for path in prebuilt_renderer().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "unet.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "unet.safetensors").write_bytes(data)
    with pytest.raises(UserFault, match="sha256"):
        load_renderer_parts(tmp_path)


def test_what_ships_fits_and_names_its_data():
    folder = prebuilt_renderer()
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= 7 * 2**20
    provenance = json.loads((folder / "provenance.json").read_text())
    assert "CC BY-SA 4.0" in provenance["data"] and provenance["script"] and provenance["sha256"]
