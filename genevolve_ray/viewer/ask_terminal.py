"""A request in the terminal while it is answered: thoughts as they come, what tools found, program, picture, verdict."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from genevolve_ray.agent.observer import WordBuffer
from genevolve_ray.agent.parser import ToolCall
from genevolve_ray.evolution.judging import MAIN
from genevolve_ray.evolution.sources import RequestNotUnderstood
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import (
    ImageHit,
    ImageObservation,
    ImageSearchObservation,
    Observation,
    SearchObservation,
    SkillObservation,
)
from genevolve_ray.records.program import ORDINALS
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import shown
from genevolve_ray.records.trajectory import Outcome, Trajectory, Turn, TurnKind, durations
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.viewer.ask_view import Answered, AskedParts, AskView
from genevolve_ray.viewer.thumbnails import PictureMode, print_pictures

LoadImage = Callable[[ImageRef], bytes]
_ACTION = re.compile(r"<(?:tool_call|answer)>")
_TAG = re.compile(r"</?think>")
_RESPONSE = re.compile(r"</?tool_response>")
_PART_OF_TAG = re.compile(r"</?[a-z_]{0,9}$")
"""The end of a piece of text that may be the beginning of a tag."""
_THUMB_ROWS, _PICTURE_ROWS = 4, 12
_MOST_HITS, _MOST_CHARS, _MOST_LINES = 5, 300, 6
"""What is shown of an observation; the page of the trajectory has all of it."""
_DIM, _NAME, _BAD, _HEAD = "dim", "cyan", "red", "bold"


class Thoughts:
    """Find the thoughts of a turn in the text that streams: all before its action, without tags."""

    def __init__(self) -> None:
        """Begin a turn."""
        self._held, self._acting = "", False

    def feed(self, piece: str) -> str:
        """Return the part of the next piece that is known to be thought."""
        if self._acting:
            return ""
        text = self._held + piece
        self._held = ""
        if action := _ACTION.search(text):
            self._acting = True
            text = text[: action.start()]
        elif begun := _PART_OF_TAG.search(text):
            self._held = begun.group()
            text = text[: begun.start()]
        return _TAG.sub("", text)


class AskTerminal(AskView):
    """Print a request line by line. Text from outside is printed without control sequences and secrets."""

    def __init__(self, console: Console, load_image: LoadImage, pictures: PictureMode = PictureMode.NONE) -> None:
        """Print to `console`; `load_image` returns the bytes of a picture, and may raise OSError."""
        self._console, self._load, self._pictures = console, load_image, pictures
        # Whoever reads a file or a pipe searches lines: nothing is wrapped there.
        self._width = console.width if console.is_terminal else 0
        self._thoughts, self._words, self._column = Thoughts(), WordBuffer(), 0
        self._streamed = False

    def opening(self) -> None:
        """Print that the parts are started."""
        self._line("starting policy, tools, renderer and judges", style=_DIM)

    def opened(self, parts: AskedParts) -> None:
        """Print the parts."""
        judges = [identity if name == MAIN else f"{name}: {identity}" for name, identity in parts.judges.items()]
        self._pair("policy", f"{parts.policy}, {parts.engine}", _DIM, indent=0)
        self._pair("tools", ", ".join(parts.tools) or "none", _DIM, indent=0)
        self._pair("renderer", parts.renderer, _DIM, indent=0)
        self._pair("judges", ", ".join(judges), _DIM, indent=0)
        if parts.no_reward:
            self._line(f"no reward, each verdict stands alone: {parts.no_reward}", style=_DIM)
        self._line(f"ready after {parts.seconds:.1f} s", style=_DIM)

    def asked(self, request: Request, seed: int) -> None:
        """Print the request."""
        self._line("")
        self._line(request.prompt, style=_HEAD)
        self._line(f"seed {seed}", style=_DIM)

    def turn_began(self, turn: int) -> None:
        """Print the number of the turn."""
        self._thoughts, self._words, self._streamed = Thoughts(), WordBuffer(), False
        self._line("")
        self._write(f"{turn + 1}  ", _HEAD)
        self._column = 3

    def text_sampled(self, piece: str) -> None:
        """Print thoughts word by word."""
        self._streamed = True
        self._flow(self._thoughts.feed(piece))

    def turn_sampled(self, text: str) -> None:
        """Print the thoughts of a turn that was not streamed, and end the line."""
        if not self._streamed:
            self._flow(Thoughts().feed(text))
        self._end_line()

    def tool_answered(self, call: ToolCall, observation: Observation, hits: Sequence[tuple[str, ImageHit]]) -> None:
        """Print the call and what its tool found, with the pictures."""
        self._called(call)
        if isinstance(observation, SearchObservation):
            for result in observation.results:
                if len(observation.results) > 1:
                    self._line(result.query, indent=5, style=_DIM)
                for hit in result.hits[:_MOST_HITS]:
                    self._pair("", hit.snippet or hit.title, indent=5, more=hit.url)
                self._nothing(len(result.hits), result.error or result.outage)
        elif not isinstance(observation, SkillObservation):  # Of a skill the policy may read a part: see `turn_ended`.
            error = observation.error or observation.outage
            if not isinstance(observation, ImageSearchObservation):
                self._lines(observation.text)
            self._show([found.image for _, found in hits], _THUMB_ROWS)
            for name, found in hits[:_MOST_HITS]:
                self._pair(name, found.title, indent=5, more=found.url)
            if isinstance(observation, ImageSearchObservation | ImageObservation):
                self._nothing(len(hits), error)
            elif error:
                self._line(error, indent=5, style=_BAD)

    def turn_ended(self, turn: Turn) -> None:
        """Print what the policy read of a skill, or why a turn was not carried out."""
        if turn.kind is TurnKind.TOOL_CALL and turn.tool == KnowledgeTool.name and not turn.error:
            self._lines(_RESPONSE.sub("", turn.observation))
        elif turn.kind is TurnKind.ANSWER:
            self._line("answer", indent=3, style=_NAME)
        elif turn.error and turn.kind is TurnKind.TOOL_CALL:
            self._line(f"{turn.tool}: the service failed: {turn.error}", indent=3, style=_BAD)
        elif turn.error:
            self._line(f"not carried out: {turn.error}", indent=3, style=_BAD)

    def programmed(self, trajectory: Trajectory) -> None:
        """Print the program and its references."""
        program = trajectory.program
        assert program is not None
        self._title("Program")
        self._line(program.gen_prompt, indent=3)
        named = [reference.img_id for reference in program.reference_images]
        self._show([hit.image for hit in trajectory.references], _THUMB_ROWS)
        for place, reference in enumerate(program.reference_images):
            title = trajectory.images[reference.img_id].title
            note = f" ({reference.note})" if reference.note else ""
            self._pair(f"{ORDINALS[place]} reference image", f"{named[place]} {title}{note}")

    def drawn(self, trajectory: Trajectory, picture: bytes) -> None:
        """Print the picture."""
        ref = trajectory.rendered
        assert ref is not None
        self._title("Picture")
        self._line(f"{ref.width} x {ref.height} pixels by {trajectory.provenance.renderer}", indent=3, style=_DIM)
        print_pictures(self._console, self._pictures, [picture], _PICTURE_ROWS, indent=3)

    def judged(self, answer: Answered) -> None:
        """Print reward, components and reasons of every judge."""
        trajectory = answer.trajectory
        if not trajectory.components() and not answer.unasked:
            return
        self._title("Verdict")
        if trajectory.reward is not None:
            self._line(f"reward {trajectory.reward.total:.2f}", indent=3, style=_HEAD)
        for name, component in trajectory.components().items():
            judge, _, part = name.partition(".")
            scale = "" if (component.low, component.high) == (0, 1) else f" ({component.low:g} to {component.high:g})"
            said = (part if judge == MAIN else name).replace("_", " ").replace("kscore", "KScore")
            self._pair(said, f"{component.value:.2f}{scale}")
            if component.rationale:
                self._line(component.rationale, indent=5, style=_DIM)
        for name, why in answer.unasked.items():
            self._line(f"not judged by {name}: {why}", indent=3, style=_DIM)

    def ended(self, answer: Answered) -> None:
        """Print the outcome, the files and the seconds."""
        trajectory = answer.trajectory
        self._end_line()
        self._line("")
        if answer.outcome is Outcome.POLICY_FAILURE:
            self._line(f"no picture: the policy gave no usable program: {trajectory.reason}", style=_BAD)
        elif answer.outcome is Outcome.INFRA_FAILURE:
            self._line(f"a service failed, which is no fault of the policy: {trajectory.reason}", style=_BAD)
        if answer.picture is not None:
            self._file("picture", answer.picture)
        if answer.page is not None:
            self._file("trajectory", answer.page)
        spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in durations(trajectory.timings).items())
        self._line(f"{answer.seconds:.1f} s{': ' + spent if spent else ''}", style=_DIM)

    def misunderstood(self, fault: RequestNotUnderstood) -> None:
        """Print the reason, the words that the world knows, and near requests."""
        self._line(f"the request is not understood: {fault.reason}", style=_BAD)
        for what, words in fault.knows.items():
            self._pair(what, ", ".join(words))
        self.suggested(fault.suggestions)

    def suggested(self, prompts: Sequence[str]) -> None:
        """Print requests, one a line."""
        if self._width:
            self._line("Try:", style=_DIM)
        for prompt in prompts:
            self._line(prompt, indent=3 if self._width else 0)

    def noted(self, text: str) -> None:
        """Print a line."""
        self._line(text, style=_DIM)

    def failed(self, message: str, code: int) -> None:
        """Print the error."""
        self._end_line()
        self._line(f"error: {message}", style=_BAD)

    def _called(self, call: ToolCall) -> None:
        values = [value for value in call.arguments.values() if value not in (None, "", [])]
        said = "; ".join(", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in values)
        self._pair(call.name, said)

    def _nothing(self, found: int, error: str) -> None:
        if error:
            self._line(error, indent=5, style=_BAD)
        elif not found:
            self._line("nothing found", indent=5, style=_DIM)
        elif found > _MOST_HITS:
            self._line(f"and {found - _MOST_HITS} more", indent=5, style=_DIM)

    def _lines(self, text: str) -> None:
        lines = [line for line in shown(text).split("\n") if line.strip()]  # A secret may have several lines.
        for line in lines[:_MOST_LINES]:
            self._line(line[:_MOST_CHARS], indent=5)
        if len(lines) > _MOST_LINES:
            self._line(f"and {len(lines) - _MOST_LINES} more lines", indent=5, style=_DIM)

    def _show(self, refs: Sequence[ImageRef], rows: int) -> None:
        if self._pictures is PictureMode.NONE:
            return
        found = []
        for ref in refs:
            try:
                found.append(self._load(ref))
            except OSError:  # The page of the trajectory says that it is missing.
                continue
        print_pictures(self._console, self._pictures, found, rows, indent=5)

    def _title(self, text: str) -> None:
        self._line("")
        self._line(text, style=_HEAD)

    def _pair(self, name: str, text: str, style: str = "", *, indent: int = 3, more: str = "") -> None:
        """Print a name and a text, and perhaps an address after it, as one line."""
        said = Text(f"{shown(name)}  " if name else "", style=style or _NAME)
        said.append(" ".join(shown(text)[:_MOST_CHARS].split()), style=style or "default")
        if more:
            said.append(f"  {' '.join(shown(more)[:_MOST_CHARS].split())}", style=_DIM)
        self._print(said, indent)

    def _file(self, name: str, path: Path) -> None:
        """Print a name and a path as one line, whatever its length: a wrapped path cannot be copied from a terminal."""
        self._console.print(Text(f"{name}  ", style=_NAME).append(shown(str(path)), "default"), soft_wrap=True)

    def _line(self, text: str, *, indent: int = 0, style: str = "") -> None:
        for line in shown(text).split("\n"):
            self._print(Text(line, style=style), indent)

    def _print(self, text: Text, indent: int) -> None:
        """Print a text, wrapped with its indent where the output is a terminal."""
        if not self._width:
            self._console.print(Text(" " * indent) + text, soft_wrap=True)
            return
        for line in text.wrap(self._console, max(20, self._width - indent)) or [text]:
            self._console.print(Text(" " * indent) + line, soft_wrap=True)

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), end="", soft_wrap=True)

    def _flow(self, text: str) -> None:
        """Print running text by whole words, so that a secret is never printed in parts."""
        self._print_words(self._words.feed(text))

    def _print_words(self, text: str) -> None:
        for word in shown(text).split():
            self._print_word(word)

    def _print_word(self, word: str) -> None:
        for part in textwrap.wrap(word, max(20, self._width - 3)) if self._width else [word]:
            if self._width and self._column + cell_len(part) >= self._width:
                self._write("\n   ", "")
                self._column = 3
            self._write(f"{part} ", f"{_DIM} italic")
            self._column += cell_len(part) + 1
        self._console.file.flush()

    def _end_line(self) -> None:
        self._print_words(self._words.rest())
        if self._column:
            self._console.print()
            self._column = 0
