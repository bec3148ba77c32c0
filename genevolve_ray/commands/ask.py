"""`genevolve ask`: one request, or a chat of requests, shown while they are answered."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from rich.console import Console

from genevolve_ray.commands.ask_chat import SUGGESTED, AskChat, suggested_count, terminable
from genevolve_ray.commands.ask_session import ANSWER, wanted_parts, warm_session
from genevolve_ray.commands.inference import CONSOLE, Agent, Common, agent_of, without_groups
from genevolve_ray.commands.jobs import check_parts, used_specs
from genevolve_ray.config import RunConfig, with_overrides
from genevolve_ray.doctor.preflight import check_formulas
from genevolve_ray.errors import GenevolveError, UserFault, as_ending
from genevolve_ray.evolution.layers import is_file, read_layers
from genevolve_ray.evolution.sources import RequestNotUnderstood, RequestReader
from genevolve_ray.records.differences import value_at
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.pictures import ImageRefused, clean_picture
from genevolve_ray.records.request import Request
from genevolve_ray.viewer.ask_events import EXIT_CODES, AskEvents
from genevolve_ray.viewer.ask_terminal import AskTerminal
from genevolve_ray.viewer.ask_view import AskView
from genevolve_ray.viewer.thumbnails import PictureMode, picture_mode

RUNS = Path("runs/ask")
"""Folder of the answers, unless another one is named."""
EXIT_NOT_UNDERSTOOD = 2
_SLUG_CHARS = 40


@dataclass(frozen=True)
class AskOptions:
    """Hold the options of the command."""

    common: Common
    policy: str | None = None
    out: Path | None = None
    truth: Path | None = None
    seed: int | None = None
    date: str | None = None
    pictures: str = "auto"
    as_json: bool = False


def suggest_run(text: str | None, options: AskOptions) -> int:
    """Print requests that can be played: some of them, so many, or those near a text. Raises UserFault, ConfigError."""
    images = MemoryImages()
    view, reader = _view(options, images), RequestReader(asked_config(options).requests, images)
    count = suggested_count(text or "")
    view.suggested(reader.suggest(SUGGESTED, near=text or "") if count is None else reader.suggest(count))
    return 0


def ask_run(prompt: str, options: AskOptions) -> int:
    """Answer one request and return the exit code.

    0: a picture, judged where a judge can; 1: the policy gave no usable program; 2: the request is not understood; 75: a
    service failed; 130 and 143: stopped by a signal.

    Raises:
        UserFault, ConfigError: for anything that cannot run, before any call is made.
    """
    images = MemoryImages()
    view = _view(options, images)
    with _told(view, options):
        config = asked_config(options)
        try:
            request = RequestReader(config.requests, images).read(_checked(prompt))
        except RequestNotUnderstood as fault:
            view.misunderstood(fault)
            return EXIT_NOT_UNDERSTOOD
        request = _with_truth(request, options.truth, images)
        folder = _single_folder(options.out, prompt)
        with terminable() as heard:
            try:
                with _agent(options, config, folder) as agent, warm_session(agent, images, view) as answer:
                    answered = answer(request, folder, agent.config.seed)
            except KeyboardInterrupt:
                view.failed("stopped by a signal", heard.exit_code)
                return heard.exit_code
    return EXIT_CODES.get(answered.outcome, 0)


def chat_run(options: AskOptions) -> int:
    """Answer requests from the prompt or from standard input until its end, and return the exit code.

    0, or 143 after SIGTERM.

    Raises:
        UserFault, ConfigError: for anything that cannot run, before any call is made.
    """
    images = MemoryImages()
    view = _view(options, images)
    with _told(view, options):
        config = asked_config(options)
        folder = options.out or _new_folder("chat")
        reader = RequestReader(config.requests, images)
        with terminable() as heard:
            try:
                with _agent(options, config, folder) as agent, warm_session(agent, images, view) as answer:

                    def answer_line(line: str, seed: int) -> None:
                        request = reader.read(_checked(line))
                        answer(request, _next_folder(folder, line), seed)

                    return AskChat(answer_line, reader, view, agent.config.seed, heard).run()
            except KeyboardInterrupt:
                view.failed("stopped by a signal", heard.exit_code)
                return heard.exit_code


def asked_config(options: AskOptions) -> RunConfig:
    """Return the configuration for requests one at a time.

    On a CPU the transformers engine takes the place of vLLM, unless `--set` or a file of the user names `engine.kind`.
    """
    common = options.common
    seeds = [] if options.seed is None else [f"seed={options.seed}"]
    config = common.load(*seeds)
    engine = config.engine
    if engine.kind == "vllm" and engine.device == "cpu" and not (engine.vllm.sleep or _names_engine(common)):
        config = common.load(*seeds, "engine.kind=transformers")
    return common.judging(without_groups(config), "optional")


def _names_engine(common: Common) -> bool:
    """Return whether `--set` or a file of the user, which no preset is, names the kind of the engine."""
    files = [layer.values for layer in read_layers(common.config) if is_file(layer.name)]
    return any(value_at(values, "engine.kind") for values in [*files, with_overrides({}, common.settings)])


@contextmanager
def _agent(options: AskOptions, config: RunConfig, folder: Path) -> Iterator[Agent]:
    """Lend the policy, when everything that it needs was checked. Raises UserFault."""
    with agent_of(options.policy, config, folder, "ask", options.date) as agent:
        if agent.source is None:
            raise UserFault("--policy direct has no agent to ask; `genevolve render` draws requests as they are")
        wanted = wanted_parts(agent)
        for role, spec in used_specs(agent.config, wanted).items():
            if spec.isolated:
                raise UserFault(f"{role}.runtime_env needs processes of its own, which ask does not start: use rollout")
        check_parts(agent.config, wanted, CONSOLE, local=True)
        check_formulas(agent.config)
        yield agent


def _view(options: AskOptions, images: MemoryImages) -> AskView:
    """Return the view on standard output. Raises UserFault for an unknown way to show pictures."""
    if options.as_json:
        return AskEvents(sys.stdout)
    modes = ("auto", *PictureMode)
    if options.pictures not in modes:
        raise UserFault(f"--pictures {options.pictures!r} is unknown; valid: {', '.join(modes)}")
    console = Console(highlight=False)
    if options.pictures != "auto":
        return AskTerminal(console, images.get, PictureMode(options.pictures))
    # A color that is forced upon a file or a pipe makes no terminal of it.
    mode = picture_mode(os.environ, terminal=sys.stdout.isatty(), colors=console.color_system)
    return AskTerminal(console, images.get, mode)


@contextmanager
def _told(view: AskView, options: AskOptions) -> Iterator[None]:
    """Tell machines an error also as an event; the command ends with it as any other."""
    try:
        yield
    except (GenevolveError, OSError) as error:
        if options.as_json and (ending := as_ending(error)) is not None:
            view.failed(*ending)
        raise


def _checked(prompt: str) -> str:
    """Return a request without surrounding space. Raises UserFault for one without a letter."""
    if not any(map(str.isalnum, prompt)):
        raise UserFault("the request is empty: write what to draw, or --suggest for requests that can be played")
    return prompt.strip()


def _with_truth(request: Request, path: Path | None, images: MemoryImages) -> Request:
    """Return a request with a ground-truth picture from a file. Raises UserFault for one that is no picture."""
    if path is None:
        return request
    try:
        picture = clean_picture(path.read_bytes())
    except ImageRefused as error:
        raise UserFault(f"--truth {path}: {error}") from error
    ref = images.put(picture.data, width=picture.width, height=picture.height, media_type=picture.media_type)
    return request.model_copy(update={"truth_image": ref})


def _single_folder(out: Path | None, prompt: str) -> Path:
    """Return the folder of an answer. Raises UserFault for one with files of something else."""
    if out is None:
        return _new_folder(_slug(prompt))
    if out.is_dir() and any(out.iterdir()) and not (out / ANSWER).is_file():
        raise UserFault(f"--out {out}: holds files that `genevolve ask` did not write: name another folder")
    return out


def _new_folder(name: str) -> Path:
    """Return a folder below `RUNS` that does not exist; it is created with its first file."""
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(folder for folder in map(RUNS.joinpath, names) if not folder.exists())


def _next_folder(folder: Path, prompt: str) -> Path:
    """Return the folder of the next answer of a chat: its number and the first words of its request."""
    found = [int(path.name[:3]) for path in folder.glob("[0-9][0-9][0-9]-*")] if folder.is_dir() else []
    return folder / f"{max(found, default=0) + 1:03d}-{_slug(prompt)}"


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_SLUG_CHARS].strip("-") or "request"
