"""Reading texts with RapidOCR: the models of PP-OCR, which the package carries, on the CPU through onnxruntime."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from genevolve_ray.errors import UserFault
from genevolve_ray.judges.text_matching import ReadText
from genevolve_ray.records.base import Config

_PACKAGES = ("rapidocr", "onnxruntime")


class RapidOcrConfig(Config):
    """Configure the reader that comes with the package."""

    workers: int = Field(default=1, ge=1)
    """Pictures that are read at once; each has models of its own."""
    threads: int = Field(default=2, ge=1)
    """Threads that read one picture."""
    params: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further parameters of `RapidOCR(params=...)`, as `{Rec.model_path: /models/latin.onnx}`. Without them only the
    models inside the package are used; another language or size may let RapidOCR download models."""


class RapidOcrReader:
    """Implement `judges.ocr_judge.TextReader` with rapidocr."""

    Config = RapidOcrConfig
    deterministic = True

    def __init__(self, config: RapidOcrConfig) -> None:
        """Load the models of one thread, and read a picture; each further thread loads its own when it first reads.

        Raises:
            UserFault: without the packages, or naming the parameters with which no models can be loaded.
        """
        self.check(config)
        self.config = config
        own = json.dumps(config.params, sort_keys=True)
        self.identity = f"rapidocr-{version('rapidocr')}:{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        try:
            engine = self._loaded()
            engine(_letters())  # It opens its models when it first needs them.
        except Exception as error:
            # The libraries raise anything on an unknown parameter or a file that is no model.
            said = f"{type(error).__name__}: {str(error)[:300]}"
            raise UserFault(f"reader rapidocr cannot be loaded with params={config.params}: {said}") from error
        self._spare = [engine]
        self._engines = threading.local()
        self._executor = ThreadPoolExecutor(config.workers, "rapidocr")

    @classmethod
    def check(cls, config: RapidOcrConfig) -> None:
        """Check that the packages are installed. Raises UserFault naming those that are not, and the extra."""
        if missing := [name for name in _PACKAGES if find_spec(name) is None]:
            raise UserFault(
                f"reader rapidocr needs {' and '.join(missing)}: pip install 'genevolve_ray[ocr]', or name another reader"
            )

    async def read(self, picture: bytes) -> Sequence[ReadText]:
        """Return the texts in a picture, read in one of the reader's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._read, picture)

    async def aclose(self) -> None:
        """Stop the threads once they have read all pending pictures."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _read(self, picture: bytes) -> list[ReadText]:
        found = self._engine()(picture)
        if found.boxes is None or not len(found.boxes):
            return []
        if getattr(found, "txts", None) is None:
            raise RuntimeError(f"{len(found.boxes)} texts were found, but none could be read")
        return [
            ReadText(text=text, box=_around(corners), confidence=min(max(float(score), 0.0), 1.0))
            for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
        ]

    def _engine(self) -> Any:
        """Return the models of this thread: an engine keeps state between the steps of a picture."""
        if not hasattr(self._engines, "one"):
            try:
                self._engines.one = self._spare.pop()
            except IndexError:
                self._engines.one = self._loaded()
        return self._engines.one

    def _loaded(self) -> Any:
        from rapidocr import RapidOCR

        onnx = "EngineConfig.onnxruntime"
        own = {
            "Global.log_level": "error",
            "Global.text_score": 0.0,  # The judge decides by its own `min_confidence`.
            f"{onnx}.intra_op_num_threads": self.config.threads,
            f"{onnx}.inter_op_num_threads": 1,
        }
        return RapidOCR(params=own | self.config.params)


def _letters() -> bytes:
    """Return a picture with a word."""
    from PIL import Image, ImageDraw, ImageFont

    image, buffer = Image.new("RGB", (240, 120), "white"), io.BytesIO()
    ImageDraw.Draw(image).text((40, 30), "START", fill="black", font=ImageFont.load_default(44))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _around(corners: Any) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of four corners."""
    xs, ys = zip(*((float(x), float(y)) for x, y in corners), strict=True)
    return min(xs), min(ys), max(xs), max(ys)
