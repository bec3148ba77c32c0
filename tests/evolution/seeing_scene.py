"""A policy that sees, a store with pictures, and attempts that were shown some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop_fakes import make_config
from noisy_pictures import noise_file

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.engines.protocol import Engine, PromptImage, SamplingParams
from genevolve_ray.evolution.inprocess import load_banned, load_chat, start_learner
from genevolve_ray.evolution.learner import LocalLearner
from genevolve_ray.evolution.teaching import TeacherPatch
from genevolve_ray.evolution.weights import WeightFolders
from genevolve_ray.records.images import ImageRef, ImageStore, MemoryImages
from genevolve_ray.records.ledger import MediaSpan, SpanKind, TokenLedger
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Trajectory
from genevolve_ray.records.verdict import Reward
from genevolve_ray.tools.showing import Observations

OLD = 99
"""A version that no step trains, so that its tokens have no parity."""
PROFILE = PROFILES["release"].model_copy(update={"observations": Observations(images=True)})


class Counting(MemoryImages):
    """A store that counts, and that can hold other bytes than it names."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def get(self, ref: ImageRef) -> bytes:
        self.read.append(ref.sha256)
        return super().get(ref)


@dataclass
class Scene:
    """A policy that sees, and a store with two pictures."""

    folder: Path
    images: ImageStore = field(default_factory=Counting)
    chat: ChatFormat = field(init=False)

    def __post_init__(self) -> None:
        self.chat = load_chat(self.folder)
        self.banned = load_banned(self.folder, self.chat)
        self.patch = TeacherPatch(self.chat, PROFILE, 10_000)
        self.wide, self.tall = (
            self.images.put(noise_file(seed, size), width=size[0], height=size[1])
            for seed, size in ((1, (96, 64)), (2, (64, 128)))
        )

    def trajectory(self, sample: int, pictures: Sequence[ImageRef], answers: bool = True) -> Trajectory:
        """Return an attempt that called for pictures and then answered, or is about to."""
        ledger, words = TokenLedger(), [i for i in range(20, 200) if i not in self.banned]
        ledger.append_context([*self.patch._before, *self.chat.text_ids("draw")], SpanKind.PROMPT)
        ledger.append_policy(words[:4], [-1.0] * 4, [0 if answers else OLD] * 4, SpanKind.TOOL_CALL)
        grids = [self.chat.grid(p.width, p.height) for p in pictures]
        tokens, places = self.chat.observation("found" + "\n<image>" * len(grids), ended=False, grids=grids)
        media = [
            MediaSpan(start=start, end=end, sha256=p.sha256, grid=grid)
            for (start, end), p, grid in zip(places, pictures, grids, strict=True)
        ]
        ledger.append_context(tokens, SpanKind.OBSERVATION, media)
        if answers:
            answer = words[10 : 14 + sample]
            ledger.append_policy(answer, [-2.0] * len(answer), [0] * len(answer), SpanKind.ANSWER)
        ledger.check()
        hits = {
            f"IMG_{i:03d}": ImageHit(title="t", url="https://x.org", image=p, shown=p) for i, p in enumerate(pictures)
        }
        return Trajectory(
            SampleKey(step=1, request_id="r", sample=sample),
            "draw",
            ledger,
            Provenance(profile="release", engine="fake"),
            images=hits,
            outcome=Outcome.SCORED,
            reward=Reward(total=sample / 4, image=0.5, text=0.5),
        )

    async def played(self, engine: Engine) -> Group:
        """Return attempts whose answers an engine samples, with the pictures of `group`."""
        group = self.group(answers=False)
        for t in group.trajectories:
            media = [PromptImage(span=m, data=self.images.get(t.shown(m.sha256))) for m in t.ledger.media]
            sampling = SamplingParams(max_tokens=10, seed=t.key.sample)
            sampled = await engine.generate(t.ledger.tokens, sampling, str(t.key), media)
            t.ledger.append_policy(sampled.tokens, sampled.logprobs, sampled.versions, SpanKind.ANSWER)
        return group

    def group(self, answers: bool = True) -> Group:
        """Return two attempts that saw both pictures, one that saw one, and one that saw none."""
        shown = ([self.wide, self.tall], [self.wide, self.tall], [self.tall], [])
        return Group("r", 1, [self.trajectory(i, pictures, answers) for i, pictures in enumerate(shown)])

    def learner(self, tmp_path: Path, **settings: Any) -> LocalLearner:
        profile = {"extends": "release", "observations": {"images": True}}
        experience = {"enabled": "ved" in settings}
        config = make_config(learner={"threads": 1, "lr": 1e-3, **settings}, profile=profile, experience=experience)
        return start_learner(config, self.folder, WeightFolders(tmp_path / "versions"), self.images)
