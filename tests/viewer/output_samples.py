"""Folders as the commands write them: a benchmark with judged rows, pictures and truths, a folder of rollouts, ..."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from genevolve_ray.bench.summaries import write_summaries
from genevolve_ray.records.published.results import EvaluatedRow
from genevolve_ray.records.verdict import ScoreFormula

GRADES = (0.0, 0.5, 1.0)


def png(color: str, side: int = 64) -> bytes:
    """Return a picture of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), color).save(buffer, format="PNG")
    return buffer.getvalue()


def put(path: Path, data: bytes | str | dict[str, Any] | list[Any]) -> Path:
    """Write a file and its folders; an object as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, dict | list):
        data = json.dumps(data)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def judged_row(number: int, grade: float | None, **fields: Any) -> dict[str, Any]:
    """Return a judged row; None is one whose judge gave up."""
    values = dict.fromkeys(("faithfulness", "visual_correctness", "text_accuracy", "aesthetics"), grade)
    return {
        "id": f"case_{number:03d}",
        "prompt": f"request {number}",
        "eval_type": ("Knowledge-Anchored", "Quality-Anchored")[number % 2],
        "category": f"category_{number % 3}",
        "difficulty": ("medium", "hard")[number % 2],
        "gen_prompt": f"program {number}",
        "reference_images": [{"img_id": "IMG_001", "note": "the look", "local_path": "refs/1.png"}],
        "gt_image": "truths/1.png",
        "termination": "answer",
        "rounds": 3,
        "output_path": f"images/{number}.png",
        "success": True,
        "image_status": "ok",
        "eval_success": grade is not None,
        "error": None if grade is not None else "the judge gave no JSON",
        "scores": None if grade is None else {"rationale": f"reason {number}", **values},
        "genevolve_ray": {"renderer": "made-up/1", "judge": "judge/1", "formula": "release-summary"},
    } | fields


def bench_folder(root: Path, count: int = 12) -> Path:
    """Write a benchmark of `count` rows: every sixth failed; pictures are in the renderer's folder."""
    rows = [judged_row(i, None if i % 6 == 5 else GRADES[i % 3]) for i in range(count)]
    for row in rows:
        put(root / "render" / row["output_path"], png("teal"))
    put(root / "agent/refs/1.png", png("orange"))
    put(root / "data/truths/1.png", png("navy"))
    put(root / "judge/results_eval.json", rows)
    put(root / "bench-genevolve.job.json", {"seed": 1})
    write_summaries(root / "judge", [EvaluatedRow.read(row) for row in rows], ScoreFormula.RELEASE_SUMMARY)
    return root


def rollouts_folder(root: Path) -> Path:
    """Write rows of the agent: two answers and one that ran out of turns."""
    fields = ("id", "prompt", "category", "gen_prompt", "reference_images", "termination", "rounds")
    rows = [{name: judged_row(i, 1.0)[name] for name in fields} for i in range(3)]
    rows[2] |= {"gen_prompt": "", "reference_images": [], "termination": "max_llm_calls"}
    put(root / "refs/1.png", png("orange"))
    put(root / "results.json", rows)
    return root


GAIN = {"mean": 0.1, "low": 0.05, "high": 0.15, "pairs": 12}


def lift_object(step: int = 40, **fields: Any) -> dict[str, Any]:
    """Return what `genevolve experience lift` writes, of one policy."""
    policy = {"reward": 0.5, "requests": 20, "left_out": {}, "lift": {"own": GAIN}, "differences": {}}
    return {"run": "runs/demo", "step": step, "policies": {f"step {step}": policy}} | fields


def calibration_object(**fields: Any) -> dict[str, Any]:
    """Return what `genevolve experience calibrate` writes, of two thresholds."""
    recalled = {"precision": 0.75, "low": 0.5, "high": 1.0, "recall": 0.25}
    rows = [
        {"threshold": t, "hits": 3, "hit_rate": 0.4, "nearest": recalled, "merged": recalled | {"precision": None}}
        for t in (0.4, 0.5)
    ]
    about = {"embedder": "hashing", "reference": "own", "bundles": 12, "requests": 12, "alike": 0.5, "chance": 0.2}
    return {**about, "threshold": 0.84, "wanted": 0.9, "recommended": 0.5, "rows": rows} | fields


def result_objects() -> dict[str, dict[str, Any]]:
    """Return an object of each kind of result, by the name of a file."""
    suite = {"policy": "cold", "reward_mean": 0.5, "requests": 2, "rewards": {"a": 0.4, "b": None}, "world_seed": 3}
    arms = {name: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1} for name, mean in (("sft", 0.5), ("full", 0.6))}
    return {
        "ablation.json": {"arms": arms, "full_minus_sft": GAIN, "seeds": 1, "steps": 4},
        "lift-000040.json": lift_object(),
        "calibration.json": calibration_object(),
        "suite.json": suite,
    }
