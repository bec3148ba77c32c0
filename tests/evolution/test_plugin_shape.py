"""A plug-in of another shape is refused before anything starts; what it returns is checked when it is called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genevolve_ray.contracts.samples import REQUEST
from genevolve_ray.evolution.plugin_shape import PluginFault
from genevolve_ray.evolution.plugins import SPECS, Role, build_here
from genevolve_ray.evolution.services import JudgeService, RenderService
from genevolve_ray.experience.recall import embedded
from genevolve_ray.records import base
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.plugin_results import PluginResultFault
from genevolve_ray.records.program import Program
from genevolve_ray.tools.protocol import EpisodeContext
from genevolve_ray.tools.running import running_tools
from genevolve_ray.tools.showing import Observations


class Sound:
    """A renderer with nothing wrong."""

    class Config(base.Config):
        """No settings."""

    identity = "sound/1"

    def __init__(self, config: Any) -> None:
        self.value: Any = None

    async def render(self, prompt: Any, references: Any, seed: Any) -> Any:
        return self.value


class Unconfigured:
    def __init__(self, config: Any) -> None: ...


class WithoutConfig(Sound):
    def __init__(self) -> None: ...


class WithImages(Sound):
    def __init__(self, config: Any, images: Any) -> None: ...


class Methodless:
    Config = Sound.Config

    def __init__(self, config: Any) -> None: ...


class FewArguments(Sound):
    async def render(self, prompt: Any) -> Any: ...  # type: ignore[override]


class Nameless(Sound):
    identity = ""


class Toolless:
    Config = Sound.Config

    def __init__(self, config: Any, images: Any) -> None: ...


class Described:
    """A tool, and the toolbox around it."""

    Config = Sound.Config
    name, description = "one", "A tool."
    parameters: Any = {"type": "object"}

    def __init__(self, config: Any = None, images: Any = None, value: Any = None) -> None:
        self.tools, self.value = {"one": self}, value

    async def call(self, arguments: Any, episode: Any) -> Any:
        return self.value


class Undescribed(Described):
    parameters = None


RENDER = r"write `async def render\(self, prompt, references, seed\)`"


@pytest.mark.parametrize(
    ("role", "kind", "said"),
    [
        (Role.RENDERER, Unconfigured, "has no Config class .*records.base.Config.*`Config = MyConfig`"),
        (Role.RENDERER, WithoutConfig, r"cannot be built as WithoutConfig\(config\): .*`def __init__\(self, config\)`"),
        (Role.RENDERER, WithImages, "missing a required argument: 'images'"),
        (Role.RENDERER, Methodless, f"has no method render: {RENDER}"),
        (Role.RENDERER, FewArguments, f"render cannot be called as a run calls it: too many .*: .*{RENDER}|{RENDER}"),
        (Role.RENDERER, Nameless, r"has no identity \(it is ''\): set a text in __init__"),
        (Role.TOOLS, Sound, r"cannot be built as Sound\(config, images\)"),
        (Role.TOOLS, Toolless, r"Toolless has no tools \(it is NoneType\): set self.tools"),
        (Role.TOOLS, Undescribed, "tool Undescribed: parameters is None: .*a JSON schema as a dict"),
        (Role.JUDGE, Sound, r"has no method judge: write `async def judge\(self, request, image, truth, program, ref"),
        (Role.EMBEDDER, Sound, r"has no method embed: write `async def embed\(self, texts\)`"),
        (Role.REQUESTS, Toolless, r"has no method train: write `def train\(self, index\)`"),
    ],
)
def test_another_shape_is_refused_with_the_line_to_write(role: Role, kind: type, said: str) -> None:
    context = [MemoryImages()] if role in (Role.TOOLS, Role.REQUESTS) else []
    spec = SPECS[role](type=f"{kind.__module__}:{kind.__name__}")
    with pytest.raises(PluginFault, match=said):
        build_here(spec, *context)
    with pytest.raises(PluginFault, match=said):
        spec.build(*context)


def test_a_sound_one_is_built() -> None:
    assert isinstance(build_here(SPECS[Role.RENDERER](type=f"{__name__}:Sound")), Sound)


class Sync(Sound):
    def render(self, prompt: Any, references: Any, seed: Any) -> Any:
        return b""


class Scoring(Sound):
    needs_truth = False

    async def judge(self, request: Any, image: Any, truth: Any, program: Any, references: Any) -> Any:
        return self.value


def rendered(value: Any, kind: type = Sound) -> Awaitable[Any]:
    plugin = kind(None)
    plugin.value = value
    return RenderService(plugin, MemoryImages()).render("p", [], 1)


def judged(value: Any) -> Awaitable[Any]:
    plugin, images = Scoring(None), MemoryImages()
    plugin.value = value
    picture = images.put(b"x", width=1, height=1)
    return JudgeService(plugin, images).judge(REQUEST, picture, Program(gen_prompt="p", reference_images=()), ())


def called(value: Any) -> Awaitable[Any]:
    [tool] = running_tools(Described(value=value).tools, Observations(), MemoryImages()).values()
    return tool.call({}, EpisodeContext(request=REQUEST))


class Embedding(Sound):
    async def embed(self, texts: Any) -> Any:
        return self.value


def found(value: Any) -> Awaitable[Any]:
    plugin = Embedding(None)
    plugin.value = value
    return embedded(plugin, ["a", "b"])


PNG = r"Legal: `async def render\(self, prompt, references, seed\)` returns bytes, an encoded PNG"
VERDICT = r"OpenVerdict \(from genevolve_ray.records.components\) or Verdict \(from genevolve_ray.records.verdict\)"
TEXT = r"TextObservation or ImageObservation \(from genevolve_ray.records.observation\)"


@pytest.mark.parametrize(
    ("call", "value", "said"),
    [
        (rendered, "text", f"renderer test_plugin_shape:Sound: render returned str. {PNG}"),
        (rendered, Image.new("RGB", (1, 1)), f"render returned PIL.Image.Image. {PNG}"),
        (rendered, None, "render returned None"),
        (
            lambda value: rendered(value, Sync),
            None,
            r"render is not asynchronous \(it returned bytes without `async def`\)",
        ),
        (judged, 0.5, f"judge test_plugin_shape:Scoring: judge returned float.*{VERDICT}.*Component"),
        (judged, {"score": 1}, f"judge returned dict.*{VERDICT}"),
        (called, "text", f"tools test_plugin_shape:Described: call returned str.*{TEXT}"),
        (called, None, f"call returned None.*{TEXT}"),
        (found, [[1.0], [1.0]], r"embedder .*: embed returned list. Legal: .*float32\[n, d\]"),
        (found, np.ones((2, 3)), r"embed returned float64\[2, 3\] for 2 texts"),
        (found, np.ones((1, 3), dtype=np.float32), r"embed returned float32\[1, 3\] for 2 texts"),
    ],
)
async def test_an_illegal_result_is_told_with_the_legal_types(
    call: Callable[[Any], Awaitable[Any]], value: Any, said: str
) -> None:
    with pytest.raises(PluginResultFault, match=said):
        await call(value)


class SetInInit:
    """A renderer whose method is an attribute that its constructor sets."""

    Config = Sound.Config
    identity = "set/1"

    def __init__(self, config: Any) -> None:
        self.render = Sound(config).render


def test_a_method_may_be_set_by_the_constructor() -> None:
    spec = SPECS[Role.RENDERER](type=f"{__name__}:SetInInit")

    assert spec.resolve() is SetInInit
    assert build_here(spec).identity == "set/1"
