"""An interpreter of its own, made without network: it finds what this one has, and a package that this one lacks."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

PACKAGE = "only_in_there"
PLUGIN = '''
    """A renderer that nobody outside this interpreter can import, and that fails in words of its own."""

    import io
    import sys

    from PIL import Image
    from pydantic import Field

    from genevolve_ray.records.base import Config
    from genevolve_ray.tools.protocol import InfraFailure


    class OwnFailure(InfraFailure):
        pass


    class OwnError(Exception):
        pass


    class RendererConfig(Config):
        shade: int = Field(default=0, ge=0, le=255)


    class Renderer:
        Config = RendererConfig

        def __init__(self, config):
            self.config = config
            self.identity = f"isolated/1:{config.shade} in {sys.prefix}"

        async def render(self, prompt, references, seed):
            if prompt == "down":
                raise OwnFailure("the generator is down")
            if prompt == "bug":
                raise OwnError("a fault of the plug-in")
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (self.config.shade,) * 3).save(buffer, "PNG")
            return buffer.getvalue()
'''


def build_interpreter(folder: Path) -> str:
    """Make a virtual environment that also sees this one's packages, put the plug-in into it, and return its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=paths))
    ours = sysconfig.get_path("purelib")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
    (site / f"{PACKAGE}.py").write_text(textwrap.dedent(PLUGIN), encoding="utf-8")
    return str(folder / "bin" / "python")
