"""Small inputs that the checks share: images, a request, two attempts at it."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import (
    Outcome,
    Pair,
    Provenance,
    SampleKey,
    Termination,
    Trajectory,
    Turn,
    TurnKind,
)
from genevolve_ray.records.verdict import ImageScores, Reward, ScoreFormula, Sufficiency, Verdict

SIZE = 128
NOT_A_PICTURE = b"this is no picture"

REQUEST = Request(
    id="train-1-0",
    prompt="Paint three Velmora lanterns on the left, with the text 'SOL RIM' on a sign.",
    eval_type=EvalType.KNOWLEDGE,
    category="grounded_quantity_scene",
)


def picture(shape: str = "ellipse", colour: str = "red") -> bytes:
    """Return a PNG of one shape (ellipse or rectangle) on a pale ground."""
    image = Image.new("RGB", (SIZE, SIZE), (236, 232, 222))
    draw = ImageDraw.Draw(image)
    getattr(draw, shape)((SIZE // 4, SIZE // 4, 3 * SIZE // 4, 3 * SIZE // 4), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def store_picture(images: ImageStore, title: str, shape: str = "ellipse", colour: str = "red") -> ImageHit:
    """Put an image into a store and return it as a search result."""
    image = images.put(picture(shape, colour), width=SIZE, height=SIZE)
    return ImageHit(title=title, url=f"https://example.org/{shape}.png", image=image)


def pair(request: Request, images: ImageStore) -> Pair:
    """Return two judged attempts at a request: one that searched, one that guessed."""
    best = _attempt(request, images, 0, good=True)
    worst = _attempt(request, images, 1, good=False)
    return Pair(request.id, 1, best, worst, best.score - worst.score)


def _call(tool: str, **arguments: object) -> Turn:
    return Turn(kind=TurnKind.TOOL_CALL, text=f"<tool_call>{tool}</tool_call>", tool=tool, arguments=dict(arguments))


def _attempt(request: Request, images: ImageStore, sample: int, *, good: bool) -> Trajectory:
    official = store_picture(images, "official photo of Velmora")
    fan = store_picture(images, "fan drawing of Velmora", "rectangle", "blue")
    if good:
        turns = [
            _call("search", queries=["look of Velmora"]),
            _call("query_knowledge", skill_name="quantity_counting"),
            _call("image_search", query="official photo of Velmora"),
        ]
        prompt = (
            "three lanterns from the first reference image in one row at the left; a sign at the bottom; "
            "the text 'SOL RIM' on the sign"
        )
    else:
        turns, prompt = [_call("image_search", query="velmora")], "nice lanterns as the first reference image shows"
    score = 1.0 if good else 0.0
    sufficiency = Sufficiency(facts=good, reference_binding=good, skill_knowledge=good, executable_constraints=good)
    scores = ImageScores(faithfulness=score, visual_correctness=score, text_accuracy=score, aesthetics=score)
    return Trajectory(
        SampleKey(step=1, request_id=request.id, sample=sample),
        request.prompt,
        TokenLedger(),
        Provenance(profile="release", engine="contract"),
        turns=turns,
        images={"IMG_001": official, "IMG_002": fan},
        outcome=Outcome.SCORED,
        termination=Termination.ANSWER,
        program=Program(gen_prompt=prompt, reference_images=(ReferenceImage(img_id="IMG_001" if good else "IMG_002"),)),
        verdict=Verdict(image=scores, text=sufficiency, judge="contract", formula=ScoreFormula.PAPER),
        reward=Reward(total=score, image=score, text=score),
    )
