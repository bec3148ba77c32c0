"""What it costs to look at a run: first paint and memory of `genevolve view` on a large one, and the speed of a followed one.

The large run is made up: its groups are copies of one of the size of real ones, under names of their own. Its pictures have
1024 pixels; a few are shared by all. The followed run does a fixed amount of work in each step and stores groups as real
steps do. The viewer is a process of its own, stopped by a signal in every other step; a client reads the page whenever the
viewer announces a change, as a browser does.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Goal, LeftOut, Options, Row, Spread, paired_ratio, say

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.records.images import ImageRef
    from genevolve_ray.records.trajectory import Group

TRAJECTORIES, GROUP, GROUPS_PER_STEP, TOKENS, TURNS, PICTURES = 20_000, 8, 25, 2500, 5, 24
"""Of the large run; tokens and turns are those of a trajectory."""
FOLLOWED_GROUPS, FOLLOWED_SECONDS, FOLLOWED_STEPS = 8, 2.0, 40
"""Of the followed run: groups of a step, seconds of its work, and steps."""
PAINT_SECONDS, MEMORY_MIB, SLOWDOWN = 1.0, 300.0, 1.01
CHROMIUM = "/usr/bin/chromium"
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        return [*_large(options, Path(folder) / "large"), *_followed(options, Path(folder) / "followed")]


# --- a large run ------------------------------------------------------------------------------------------------------


def _large(options: Options, folder: Path) -> Iterator[Row]:
    count = 400 if options.quick else TRAJECTORIES
    say(f"making a run of {count} trajectories")
    synthesize(folder, count, 64 if options.quick else 1024)
    first, whole, memory, indexed, opened = (list[float]() for _ in range(5))
    for repetition in range(options.repeats):
        say(f"looking at it, {repetition + 1} of {options.repeats}")
        with viewer(folder) as (process, url, seconds):
            opened.append(seconds)
            began = time.perf_counter()
            first.append(paint(url))
            _wait_indexed(url)
            indexed.append(time.perf_counter() - began)
            whole.append(paint(url))
            for address in _addresses(url):
                paint(address)
            memory.append(_peak_mib(process.pid))
    name = f"a run of {count:,} trajectories"
    yield Row(f"{name}: from the command to its address", Spread.of(opened), "s")
    yield Row(f"{name}: first paint, nothing read yet", Spread.of(first), "s", goal=Goal(PAINT_SECONDS, "at most"))
    yield Row(f"{name}: first paint, all read", Spread.of(whole), "s", goal=Goal(PAINT_SECONDS, "at most"))
    yield Row(f"{name}: all read after", Spread.of(indexed), "s")
    yield Row(f"{name}: memory of the server, peak", Spread.of(memory), "MiB", goal=Goal(MEMORY_MIB, "at most"))


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
        table = trajectories_to_table(_group(step, "r", pictures, TOKENS).trajectories)
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


def _group(step: int, request: str, pictures: Sequence[ImageRef], tokens: int) -> Group:
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


# --- the viewer and its pages -----------------------------------------------------------------------------------------


@contextmanager
def viewer(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """Serve a run by the real command, and lend its process, the address of its page, and the seconds it took to start."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "genevolve_ray", "view", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                raise RuntimeError(f"genevolve view did not start: {line!r}")
            yield process, f"{found[0]}{folder.name}/", time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


def paint(url: str) -> float:
    """Return the seconds from the call of a page to its first content on the screen, in a browser that is warm."""
    from playwright.sync_api import sync_playwright

    if not Path(CHROMIUM).exists():
        raise LeftOut(f"no browser at {CHROMIUM}")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto("about:blank")
        page.goto(url)
        while not (
            found := page.evaluate("performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)")
        ):
            time.sleep(0.01)
        browser.close()
        return float(found[0]) / 1000


def _wait_indexed(url: str) -> None:
    while "Reading the trajectories" in (page := _get(url)) or "No trajectory is read yet" in page:
        time.sleep(0.2)


def _addresses(url: str) -> list[str]:
    """Return the addresses of the other pages in the navigation."""
    found = re.findall(r'<a href="(/[^"]+)"', _get(url).partition("<nav")[2].partition("</nav>")[0])
    base = re.match(r"http://[^/]+", url)
    assert base is not None
    return [base[0] + path for path in found if not url.endswith(path)]


def _get(url: str) -> str:
    import httpx

    return httpx.get(url, timeout=60).text


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


# --- a followed run ---------------------------------------------------------------------------------------------------


def _followed(options: Options, folder: Path) -> Iterator[Row]:
    from genevolve_ray.evolution.status import StatusFile
    from genevolve_ray.evolution.store.run import RunStore

    steps = 4 if options.quick else FOLLOWED_STEPS
    work = _work(0.05 if options.quick else FOLLOWED_SECONDS, options.threads)
    followed, alone, used = list[float](), list[float](), list[float]()
    with RunStore.open(str(folder), {"loop": {"steps": steps}}) as store, _status(folder, StatusFile) as status:
        _step(store, status, 1, work)
        with viewer(folder) as (process, url, _), _reader(url):
            say(f"{steps} steps, followed and alone by turns")
            for step in range(2, steps + 2):
                # Followed and alone in the order of ABBA, so that a machine that becomes slower favors neither.
                watched = step % 4 in (2, 1)
                process.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)
                before = _cpu_seconds(process.pid)
                seconds = _step(store, status, step, work)
                (followed if watched else alone).append(seconds)
                if watched:
                    used.append((_cpu_seconds(process.pid) - before) / seconds)
    pairs = min(len(followed), len(alone))
    yield Row(
        "a step of a followed run",
        Spread.of(followed),
        "s",
        paired_ratio(followed[:pairs], alone[:pairs]),
        "a step alone",
        Goal(SLOWDOWN, "at most"),
    )
    yield Row("processor time of the viewer that follows", Spread.of(used), "s/s")


def _step(store: RunStore, status: Any, step: int, work: Any) -> float:
    """Do the work of a step, store its groups as they come, commit it, and return its seconds."""
    groups = [_group(step, f"r{i}", (), TOKENS) for i in range(FOLLOWED_GROUPS)]
    began = time.perf_counter()
    status.change(phase="rollouts", done=0, total=FOLLOWED_GROUPS)
    for done, group in enumerate(groups, 1):
        work(FOLLOWED_GROUPS)
        store.put_group(group, step - 1)
        status.change(done=done)
    store.commit_step(step, groups, {"reward_mean": step / 100, "seconds_step": 2.0}, f"hash-{step}")
    status.change(step=step, phase="", done=0, total=0)
    return time.perf_counter() - began


def _work(seconds: float, threads: int) -> Any:
    """Return a function that does 1/n of an amount of work on all cores, which takes about `seconds` alone."""
    import torch

    torch.set_num_threads(threads)
    matrix = torch.rand(768, 768)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    multiply(20)
    began = time.perf_counter()
    multiply(100)
    times = max(1, round(100 * seconds / (time.perf_counter() - began)))
    return lambda parts: multiply(max(1, times // parts))


@contextmanager
def _status(folder: Path, kind: Any) -> Iterator[Any]:
    status = kind(folder, say)
    status.start()
    try:
        yield status
    finally:
        status.close()


@contextmanager
def _reader(url: str) -> Iterator[None]:
    """Read the page whenever the viewer announces a change, in a process of its own, as a browser elsewhere does."""
    code = (
        "import sys, httpx\n"
        "client = httpx.Client(timeout=None)\n"
        "with client.stream('GET', sys.argv[1] + 'events') as stream:\n"
        "    for line in stream.iter_lines():\n"
        "        if line.startswith('data:'):\n"
        "            client.get(sys.argv[1])\n"
    )
    # The reader stands for another machine; here it may only have what the run leaves.
    reader = subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", code, url], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        reader.terminate()
        threading.Thread(target=reader.wait).start()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
