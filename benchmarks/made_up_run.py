"""A large finished run, made up in seconds: as many trajectories, tokens and pictures as a real one has."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genevolve_ray.records.images import ImageRef
    from genevolve_ray.records.trajectory import Group

GROUP, GROUPS_PER_STEP, TOKENS, TURNS, PICTURES = 8, 25, 2500, 5, 24
"""Trajectories of a group, groups of a step, tokens and turns of a trajectory, and pictures of the whole run."""


def synthesize(folder: Path, count: int, side: int) -> None:
    """Write a finished run of `count` trajectories with pictures of `side` pixels."""
    import pyarrow as pa

    from genevolve_ray.evolution.store.documents import to_parquet
    from genevolve_ray.evolution.store.files import Folder, sha256
    from genevolve_ray.evolution.store.manifest import GroupFile, StepManifest, step_name
    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.records.arrow import trajectories_to_table

    groups = count // GROUP
    steps = max(1, groups // GROUPS_PER_STEP)
    with RunStore.open(str(folder), {"loop": {"steps": steps}}, run_seed=0) as store:
        pictures = [store.images.put(_noise(side, i), width=side, height=side) for i in range(PICTURES)]
        store.put_summary({"run": folder.name, "steps": steps})
    run_folder, number = Folder(str(folder)), 0
    for step in range(1, steps + 1):
        files = []
        # The rows of a step are alike but for their keys: converting each anew would take minutes.
        table = trajectories_to_table(make_group(step, "r", pictures, TOKENS).trajectories)
        key = table.column("key").to_pylist()
        for _ in range(GROUPS_PER_STEP):
            request, number = f"request-{number:06d}", number + 1
            field = table.schema.field("key")
            named = table.set_column(0, field, pa.array([{**k, "request_id": request} for k in key], field.type))
            told = {"request_id": request, "step": step, "policy_version": step - 1}
            data = to_parquet(named, {b"genevolve_ray.group": json.dumps(told).encode()})
            digest = sha256(data)
            path = f"steps/{step_name(step)}/groups/{request}-{digest[:16]}.parquet"
            place = run_folder.local(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            files.append(
                GroupFile(
                    path=path,
                    sha256=digest,
                    size=len(data),
                    request_id=request,
                    trajectories=GROUP,
                    policy_version=step - 1,
                )
            )
        manifest = StepManifest(
            step=step,
            policy_before=step - 1,
            policy_after=step,
            groups=tuple(files),
            metrics={"reward_mean": step / steps, "seconds_step": 60.0, "seconds_rollout": 40.0, "valid_fraction": 1.0},
            state_hash=f"hash-{step}",
        )
        run_folder.put(f"steps/{step_name(step)}/manifest.json", manifest.encode(), "step manifest")


def make_group(step: int, request: str, pictures: Sequence[ImageRef], tokens: int) -> Group:
    """Return a judged group whose trajectories have `tokens` tokens each, half of them sampled."""
    from genevolve_ray.records.ledger import SpanKind, TokenLedger
    from genevolve_ray.records.trajectory import (
        Group,
        Outcome,
        Provenance,
        SampleKey,
        Termination,
        Trajectory,
        Turn,
        TurnKind,
    )
    from genevolve_ray.records.usage import Usage
    from genevolve_ray.records.verdict import Reward

    found, part = [], max(2, tokens // (2 * TURNS))
    for sample in range(GROUP):
        ledger = TokenLedger()
        for turn in range(TURNS):
            ledger.append_context(range(part), SpanKind.PROMPT if not turn else SpanKind.OBSERVATION)
            # As unlike one another as real log-probs, which no encoding shortens.
            logprobs = [-1 / (1 + (step * 7919 + sample * 104729 + turn * 1299709 + i) % 9973) for i in range(part)]
            ledger.append_policy(range(part), logprobs, [step - 1] * part, SpanKind.ANSWER)
        turn_texts = [f"I look for a lantern with {step + sample + i} moons. " * 12 for i in range(TURNS)]
        score = (step * 31 + sample * 17) % 97 / 97
        found.append(
            Trajectory(
                SampleKey(step=step, request_id=request, sample=sample),
                f"Draw the lantern of step {step} beside a tower, in evening light.",
                ledger,
                Provenance(profile="release", engine="vllm", renderer="made-up", judge="made-up"),
                turns=[
                    Turn(
                        kind=TurnKind.TOOL_CALL, text=text, tool=("search", "image_search")[i % 2], observation=text * 2
                    )
                    for i, text in enumerate(turn_texts)
                ],
                outcome=Outcome.SCORED,
                termination=Termination.ANSWER,
                rendered=pictures[(step + sample) % len(pictures)] if pictures else None,
                reward=Reward(total=score, image=score, text=score),
                timings={"policy": 4.0, "tools": 1.0, "render": 3.0, "judge": 2.0},
                usage={
                    "policy": Usage(calls=TURNS, prompt_tokens=tokens),
                    "judge": Usage(calls=2, seconds=3.0, money=0.01),
                },
            )
        )
    return Group(request, step, found)


def _noise(side: int, seed: int) -> bytes:
    """Return a PNG that compresses as photographs do: smooth shades with a little noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-3, 4, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
