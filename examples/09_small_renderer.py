"""Example 9: a diffusion pipeline that is trained from nothing, and that a run can use as its generator.

You learn: the renderer of the world `small` is an ordinary folder in the layout of diffusers (InstructPix2Pix with its own
autoencoder and denoiser). Three functions make it: `train_renderer` trains both on scenes that are composed from OpenMoji,
`assemble_renderer` writes the folder, and `DiffusersRenderer` loads it as it loads any pipeline. Stop it when you like: the
same command goes on where it stopped. At its default sizes it takes about 80 minutes of one core. `--tiny` takes two minutes,
and draws noise.

    .venv/bin/python examples/09_small_renderer.py [--tiny] [--prebuilt] [--out FOLDER]
        [--prompts N] [--autoencoder-steps N] [--denoiser-steps N] [--rate R] [--warmup N] [--seed N]

A training can also go on from the weights of another one, with other examples. The weights in the package were made so: 3,600
steps of the denoiser, and then the following, where most scenes have a caption, and the error on its band counts three times.

    .venv/bin/python examples/09_small_renderer.py --start-from runs/examples/renderer/training/weights --seed 1
        --flags 0.32 --subjects 0.56 --captions 0.7 --caption-weight 3 --rate 8e-4 --warmup 100 --denoiser-steps 1900
        --out runs/examples/renderer-captions
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from genevolve_ray.config import load_config
from genevolve_ray.renderers.diffusers import DiffusersRenderer
from genevolve_ray.renderers.diffusers_config import DiffusersConfig
from genevolve_ray.small.parts import locate
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.training.renderer import RendererTraining, assemble_renderer, prebuilt_renderer, train_renderer

SCENES = [
    # A prompt, and the picture that is its first reference image: a flag by its code, or a subject by its name.
    ("A cat in front of the flag from the first reference image.", "MN"),
    ('The same cat before the flag in the first reference image, with the caption "FR".', "FR"),
    ("Three abacuses like in the first reference image on a yellow background.", "abacus"),
    ("Two owls with the flag from the first reference image as the background, in black and white.", "BR"),
    ("Four lobsters shown in the first reference image on a plain blue background.", "lobster"),
    ("A balloon on a pink background.", ""),
]
"""What the page at the end shows."""


def settings(asked: argparse.Namespace) -> RendererTraining:
    """Return the sizes of the training."""
    changed: dict[str, Any] = {
        "prompts": asked.prompts,
        "seed": asked.seed,
        "mix": {"flags": asked.flags, "subjects": asked.subjects, "captions": asked.captions},
        "caption_weight": asked.caption_weight,
        "autoencoder": {"steps": asked.autoencoder_steps},
        "denoiser": {"steps": asked.denoiser_steps, "rate": asked.rate, "warmup": asked.warmup},
    }
    if asked.tiny:
        loop = {"steps": 4, "batch": 2, "warmup": 1}
        changed |= {"prompts": 4, "pictures": 8, "autoencoder": loop, "denoiser": loop}
    return RendererTraining.model_validate(merged(RendererTraining().model_dump(), changed))


def merged(values: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Return values with those that were given on the command line in place of their own."""
    given = {key: value for key, value in changed.items() if value is not None}
    return values | {
        key: merged(values[key], value) if isinstance(value, dict) else value for key, value in given.items()
    }


def embedder_folder() -> Path:
    """Return the folder of MiniLM, the frozen text encoder, after its hashes were compared."""
    return locate("minilm")


def told(what: str, done: int, total: int) -> None:
    """Print the progress on one line."""
    print(f"\r{what}: {done} of {total}      ", end="" if done < total else "\n", file=sys.stderr, flush=True)


async def draw(folder: Path, library: PictureLibrary, out: Path) -> None:
    """Draw every scene beside its reference, as a run would, and save the page."""
    # Size, steps and guidance are those of the preset `small`.
    config = DiffusersConfig.model_validate({**load_config("small").renderer.config, "model": str(folder)})
    renderer, page = DiffusersRenderer(config), Image.new("RGB", (len(SCENES) * 132, 264), "white")
    ids = {subject.name: subject.id for subject in library.subjects.values()}
    for i, (prompt, name) in enumerate(SCENES):
        references = []
        if name:
            id = library.flags[name].id if name in library.flags else ids[name]
            buffer = io.BytesIO()
            library.reference(id, 128).save(buffer, "PNG")
            references.append(buffer.getvalue())
            page.paste(library.reference(id, 128), (i * 132, 0))
        data = await renderer.render(prompt, references, seed=random.Random(i).randrange(1 << 30))
        page.paste(Image.open(io.BytesIO(data)).resize((128, 128), Image.Resampling.NEAREST), (i * 132, 132))
    renderer.close()
    page.save(out)


def main() -> None:
    """Train (or take what ships), assemble, and draw a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/renderer"))
    parser.add_argument("--tiny", action="store_true", help="a few steps: shows that it runs")
    parser.add_argument("--prebuilt", action="store_true", help="train nothing: the weights that ship")
    parser.add_argument("--prompts", type=int, help="prompts to learn from; three pictures each")
    parser.add_argument("--autoencoder-steps", type=int)
    parser.add_argument("--denoiser-steps", type=int)
    parser.add_argument("--rate", type=float, help="peak learning rate of the denoiser")
    parser.add_argument("--warmup", type=int, help="steps over which that rate rises")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", type=float, help="share of prompts whose reference is a flag")
    parser.add_argument("--subjects", type=float, help="share of prompts whose reference is a subject")
    parser.add_argument("--captions", type=float, help="share of scenes with a caption")
    parser.add_argument("--caption-weight", type=float, help="weight of the error on the band of a caption")
    parser.add_argument("--start-from", type=Path, help="folder of weights that the denoiser goes on from")
    asked = parser.parse_args()
    library, embedder = PictureLibrary.installed(asked.out / "pictures"), embedder_folder()
    weights = (
        prebuilt_renderer()
        if asked.prebuilt
        else train_renderer(library, embedder, asked.out / "training", settings(asked), told, asked.start_from)
    )
    folder = assemble_renderer(weights, embedder, asked.out / "pipeline")
    asyncio.run(draw(folder, library, asked.out / "page.png"))
    print(f"The pipeline is {folder}; its pictures are {asked.out / 'page.png'}: references above, what it drew below.")


if __name__ == "__main__":
    main()
