"""A small data set to publish."""

from __future__ import annotations

from rows_to_compare import encoded, photo, words

from genevolve_ray.data.build.card import DatasetFacts, SourceNotice
from genevolve_ray.data.build.publishing import CaseSample, ConversationSample, DataPart
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.published.trajectories import Message
from genevolve_ray.records.request import EvalType, Request

ANSWER = '<think>ready</think>\n<answer>{"gen_prompt": "a mill", "reference_images": []}</answer>'
FACTS = DatasetFacts(
    name="Mills",
    about="Requests about mills.",
    licence="cc-by-4.0",
    yields={"recipes": {"in": 0, "out": 40}, "audit": {"in": 40, "out": 10}},
    marginals={"category": {"city_street_scene": 3, "vehicle_transport": 7}},
    splits={"clusters": {"count": 1, "rows": 4, "largest": 4}, "moved": {"cluster": 2}},
    leaks={"clean": True, "embedder": "hashing/1:1024", "text_cosine": 0.88, "picture_embedder": ""},
    costs={"prompts": 1.5, "judge": 2.25},
    sources=(SourceNotice("Open images", "CC BY 2.0", "https://example.org/open"),),
    limits=("Mills alone.",),
    provenance={"seed": "1"},
)


def picture(images: MemoryImages, name: str, kind: str = "png") -> ImageRef:
    """Store the photograph of a name."""
    data = encoded(photo(name, 96), kind.upper().replace("JPG", "JPEG"))
    return images.put(data, width=96, height=96, media_type=f"image/{'jpeg' if kind == 'jpg' else kind}")


def case(images: MemoryImages, number: int, text: str = "", kind: str = "png", **values: object) -> CaseSample:
    """Return a case with a truth of its own."""
    request = Request(
        id=f"case-{number}",
        prompt=text or words(f"case {number}"),
        eval_type=EvalType.QUALITY if number % 2 else EvalType.KNOWLEDGE,
        category="city_street_scene",
        difficulty="hard",
        truth_image=picture(images, f"truth {number}", kind),
        meta={"entities": [f"mill {number}"], "facts": {"sails": number}},
    )
    return CaseSample(request, number, primary_skills=("text",), secondary_skills=("layout",), **values)  # type: ignore[arg-type]


def talk(images: MemoryImages, number: int, text: str = "", pictures: int = 2) -> ConversationSample:
    """Return a conversation whose observation shows pictures of its own."""
    shown = "\n".join(["<image>"] * pictures)
    messages = (
        Message(role="system", content="Answer."),
        Message(role="user", content=text or words(f"talk {number}")),
        Message(role="assistant", content='<think>look</think>\n<tool_call>{"name": "image_search"}</tool_call>'),
        Message(role="user", content=f"<tool_response>\n{shown}\n</tool_response>"),
        Message(role="assistant", content=ANSWER),
    )
    refs = tuple(picture(images, f"reference {number}-{place}", "jpg") for place in range(pictures))
    return ConversationSample(f"talk-{number:03d}", messages, refs, {"entities": [f"wheel {number}"]})


def parts(images: MemoryImages) -> list[DataPart]:
    """Return five parts that share nothing."""
    return [
        DataPart("sft/train", [talk(images, number) for number in range(5)]),
        DataPart("sft/validation", [talk(images, 5, pictures=0)]),
        DataPart("rl/train", [case(images, number) for number in range(10, 16)]),
        DataPart("rl/validation", [case(images, 20)]),
        DataPart(
            "bench/test",
            [case(images, number, skill_bundle=("text", "layout"), skill_challenge="hard text") for number in range(3)],
        ),
    ]
