"""A request with its pictures, a program, and judge models that answer over HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from PIL import Image
from scripted_server import Call, Reply

from genevolve_ray.judges.endpoint_judge import EndpointJudge, EndpointJudgeConfig
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program, ReferenceImage
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.verdict import Verdict

REQUEST = Request(
    id="case-7", prompt="Paint the Velmora lantern with the text 'SOL RIM'.", eval_type=EvalType.KNOWLEDGE
)
PROGRAM = Program(
    gen_prompt="A lantern as in the first reference image, and the text 'SOL RIM' above it.",
    reference_images=(ReferenceImage(img_id="IMG_002", note="the lantern"),),
)
HIT = ImageHit(
    title="Velmora, official",
    url="https://example.org/v.png",
    image=ImageRef(sha256="a" * 64, width=8, height=8),
)
KSCORE: dict[str, Any] = {
    "rationale": "the lantern is right, one letter is not",
    "faithfulness": 1,
    "visual_correctness": 0.5,
    "text_accuracy": 0.5,
    "aesthetics": 1,
    "text_accuracy_na": False,
}
CHECKS: dict[str, Any] = {
    "rationale": "all is said",
    "facts": True,
    "reference_binding": True,
    "skill_knowledge": False,
    "executable_constraints": True,
}


BIN: dict[str, Any] = {"rationale": "one part is missing", "score": 0.75}


def png(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE, TRUTH = png("red"), png("blue", (64, 64))


def chat(content: Any) -> Reply:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return Reply({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": usage})


def is_kscore(call: Call) -> bool:
    """Tell the two calls of a verdict apart, whatever the wire holds."""
    return b"Image 1, generated" in call.data


def answering(kscore: Any = None, checks: Any = None) -> Callable[[int, Call], Reply]:
    """Answer each kind of call with a text (or JSON value, or reply)."""

    def reply(value: Any) -> Reply:
        if isinstance(value, Reply):
            return value
        return chat(value if isinstance(value, str) else json.dumps(value))

    return lambda _, call: reply(kscore or KSCORE) if is_kscore(call) else reply(checks or CHECKS)


def judge_of(*urls: str, **settings: Any) -> EndpointJudge:
    """Return a judge over servers; transport settings go into `kscore`, the rest beside it."""
    transport = {
        "url": urls if len(urls) > 1 else urls[0],
        "model": "vlm",
        "attempts": 2,
        "backoff_s": 0,
        "timeout_s": 10,
    }
    own = {k: settings.pop(k) for k in tuple(settings) if k in EndpointJudgeConfig.model_fields}
    return EndpointJudge(EndpointJudgeConfig.model_validate({"kscore": {**transport, **settings}, **own}))


async def judged(judge: Any, request: Request = REQUEST, program: Program = PROGRAM) -> Verdict:
    verdict: Verdict = await judge.judge(request, IMAGE, TRUTH, program, [HIT])
    return verdict
