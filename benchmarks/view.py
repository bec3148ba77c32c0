"""What it costs to look at a run: first paint and memory of `genevolve view` on a large one, and the speed of a followed one.

The large run is made up: its groups are copies of one of the size of real ones, under names of their own. Its pictures have
1024 pixels; a few are shared by all. First paint is what the browser itself notes, from the call of the printed address; the
browser is open already, and its cache is empty. The memory is that of the server's process after the index is complete and
pages with pictures were opened.

The followed run does a fixed amount of work on all cores in each step and stores groups as real steps do, at the rate of the
demo, whose steps are quick. The viewer is a process of its own, stopped by a signal in every other step; a client reads the
page whenever the viewer announces a change, as a browser does. Where steps vary by more than 1%, the processor time of the
viewer over the seconds of the step says what the machine cannot resolve.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from benchmarks.made_up_run import TOKENS, make_group, synthesize
from benchmarks.measure import Goal, LeftOut, Options, Row, Spread, paired_ratio, say

if TYPE_CHECKING:
    from genevolve_ray.evolution.store.run import RunStore

TRAJECTORIES = 20_000
"""Of the large run."""
OPENED, SETTLED = 50, 2
"""Pages that are opened before the memory is read, and how often all of this is repeated."""
FOLLOWED_GROUPS, FOLLOWED_SECONDS, FOLLOWED_STEPS = 8, 6.0, 24
"""Of the followed run: groups of a step, seconds of its work (those of the demo in one process), and steps."""
PAINT_SECONDS, MEMORY_MIB, SLOWDOWN = 1.0, 300.0, 1.01
CHROMIUM = "/usr/bin/chromium"
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
_PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        return [*_large(options, Path(folder) / "large"), *_followed(options, Path(folder) / "followed")]


# --- a large run ------------------------------------------------------------------------------------------------------


def _large(options: Options, folder: Path) -> Iterator[Row]:
    count = 400 if options.quick else TRAJECTORIES
    say(f"making a run of {count} trajectories")
    synthesize(folder, count, 64 if options.quick else 1024)
    opened, first, requests, whole, indexed, work, peak, resident, shared = (list[float]() for _ in range(9))
    with browser() as paint:
        paint("data:text/html,warm")
        for repetition in range(options.repeats):
            say(f"first paint, {repetition + 1} of {options.repeats}")
            with viewer(folder) as (_, url, seconds):
                opened.append(seconds)
                seconds, fetched = paint(url)
                first.append(seconds)
                requests.append(fetched)
        for repetition in range(min(SETTLED, options.repeats)):
            say(f"all of it, {repetition + 1} of {min(SETTLED, options.repeats)}")
            with viewer(folder) as (process, url, _):
                before, began = _cpu_seconds(process.pid), time.perf_counter()
                _wait_indexed(url)
                indexed.append(time.perf_counter() - began)
                work.append(_cpu_seconds(process.pid) - before)
                whole.append(paint(url)[0])
                for address in _pages_with_pictures(url, 10 if options.quick else OPENED):
                    paint(address)
                found = _memory_mib(process.pid)
                peak.append(found["VmHWM"])
                resident.append(found["Rss"])
                shared.append(found["Pss"])
    name, goal = f"a run of {count:,} trajectories", Goal(PAINT_SECONDS, "at most")
    yield Row(f"{name}: from the command to its address", Spread.of(opened), "s")
    yield Row(f"{name}: first paint, server just started", Spread.of(first), "s", goal=goal)
    yield Row(f"{name}: requests of that page", Spread.of(requests), "requests")
    yield Row(f"{name}: first paint, index complete", Spread.of(whole), "s", goal=goal)
    yield Row(f"{name}: index complete after", Spread.of(indexed), "s")
    yield Row(f"{name}: processor time of the index", Spread.of(work), "s")
    after = f"after {10 if options.quick else OPENED} pages"
    yield Row(f"{name}: resident memory of the server, peak", Spread.of(peak), "MiB", goal=Goal(MEMORY_MIB, "at most"))
    yield Row(f"{name}: resident memory {after}", Spread.of(resident), "MiB")
    yield Row(f"{name}: proportional memory (PSS) {after}", Spread.of(shared), "MiB")


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


@contextmanager
def browser() -> Iterator[Callable[[str], tuple[float, int]]]:
    """Open a browser, and lend a function that opens an address with an empty cache.

    It returns the seconds from the call to the first content on the screen, and the number of requests up to the end of
    loading.
    """
    from playwright.sync_api import sync_playwright

    if not Path(CHROMIUM).exists():
        raise LeftOut(f"no browser at {CHROMIUM}")
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))

        def paint(url: str) -> tuple[float, int]:
            context = opened.new_context(viewport={"width": 1280, "height": 900})
            page, fetched = context.new_page(), list[str]()
            page.on("request", lambda request: fetched.append(request.url))
            page.goto(url)
            end = time.monotonic() + 30
            while (noted := page.evaluate(_PAINTED)) is None and time.monotonic() < end:
                page.screenshot()  # A headless browser may paint only once somebody asks for a frame.
            context.close()
            return float("nan") if noted is None else noted / 1000, len(fetched)

        yield paint
        opened.close()


def _wait_indexed(url: str) -> None:
    while "Reading the trajectories" in (page := _get(url)) or "No trajectory is read yet" in page:
        time.sleep(0.2)


def _pages_with_pictures(url: str, count: int) -> list[str]:
    """Return the addresses of lists of groups, of groups and of trajectories, in equal shares."""
    lists = [urljoin(url, f"groups?page={number}") for number in range(1, count // 3 + 1)]
    groups, trajectories = list[str](), list[str]()
    for address in lists:
        page = _get(address)
        groups += [urljoin(url, path) for path in re.findall(r'href="(/[^"]*/group/[^"]*)"', page)[:1]]
        trajectories += [urljoin(url, path) for path in re.findall(r'href="(/[^"]*/trajectory/[^"]*)"', page)[:2]]
    return [*lists, *groups, *trajectories][:count]


def _get(url: str) -> str:
    import httpx

    return httpx.get(url, timeout=60).text


def _memory_mib(pid: int) -> dict[str, float]:
    """Return the peak of resident memory (VmHWM), resident (Rss) and proportional (Pss) memory of a process."""
    told = "".join(Path(f"/proc/{pid}/{name}").read_text(encoding="ascii") for name in ("status", "smaps_rollup"))
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(VmHWM|Rss|Pss):\s+(\d+) kB", told, re.MULTILINE)}


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
    yield Row(
        "the same, mean of the pairs with its 95% interval",
        _mean_interval([one / other for one, other in zip(followed[:pairs], alone[:pairs], strict=True)]),
        "",
    )
    yield Row(
        "processor time of the viewer that follows, over the seconds of the step",
        Spread.of(used),
        "s/s",
        goal=Goal(SLOWDOWN - 1, "at most"),
    )
    cores = os.cpu_count() or 1
    yield Row(f"the same as a share of all {cores} cores", Spread.of([share / cores for share in used]), "")


def _mean_interval(values: Sequence[float]) -> Spread:
    """Return the mean with the 2.5% and 97.5% quantiles of means that are drawn from the values again (bootstrap)."""
    import numpy as np

    found = np.asarray(values)
    means = found[np.random.default_rng(0).integers(len(found), size=(2000, len(found)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Spread(float(found.mean()), float(low), float(high), len(found))


def _step(store: RunStore, status: Any, step: int, work: Any) -> float:
    """Do the work of a step, store its groups as they come, commit it, and return its seconds."""
    groups = [make_group(step, f"r{i}", (), TOKENS) for i in range(FOLLOWED_GROUPS)]
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
