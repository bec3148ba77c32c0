"""A request source: it gives the requests that a run trains and measures on."""

from pydantic import Field

from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.request import EvalType, Request

_THINGS = ("lantern", "teapot", "lighthouse", "bicycle", "umbrella", "violin")
_PLACES = ("on a beach", "in a library", "under a bridge", "on a mountain", "in a greenhouse", "by a canal")


class MyRequestsConfig(Config):
    """Configure the requests. Every field is a key under `requests.config`."""

    seed: int = Field(default=1, ge=0)
    """Other seeds give the training requests in another order."""


class MyRequests:
    """Ask for a thing at a place. Training, validation and test differ in the number of things."""

    Config = MyRequestsConfig

    def __init__(self, config: MyRequestsConfig, images: ImageStore) -> None:
        """Keep the settings. Read your file of requests here."""
        # A judge may compare with a picture: truth_image=images.put(data, width=..., height=...) of a request.
        self._seed, self._images = config.seed, images

    def train(self, index: int) -> Request:
        """Return the training request of an index: always the same, as a resumed run asks again."""
        return self._request("train", index + self._seed, f"{index // 36 + 2} of them")

    def validation(self, count: int) -> list[Request]:
        """Return the first validation requests."""
        return [
            self._request("validation", index, f"a single one, version {index // 36 + 1}") for index in range(count)
        ]

    def heldout(self, count: int) -> list[Request]:
        """Return the first test requests, which a run measures before and after training."""
        return [
            self._request("test", index, f"a whole row of them, version {index // 36 + 1}") for index in range(count)
        ]

    def _request(self, split: str, index: int, number: str) -> Request:
        thing, place = _THINGS[index % 6], _PLACES[index // 6 % 6]
        return Request(id=f"{split}-{index}", prompt=f"Draw a {thing} {place}: {number}.", eval_type=EvalType.QUALITY)
