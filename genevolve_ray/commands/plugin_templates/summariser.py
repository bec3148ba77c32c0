"""A summarizer: the best and the worst attempt at a request become advice for later requests."""

from genevolve_ray.judges.summariser import bundle_head
from genevolve_ray.records.base import Config
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.leaks import without_leaks
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair


class MySummariserConfig(Config):
    """Configure the advice. Every field is a key under `summariser.config`."""

    longer: float = 1.2
    """A prompt that is so many times longer counts as more detailed."""


class MySummariser:
    """Compare how much two attempts searched, and how detailed their prompts are."""

    Config = MySummariserConfig

    def __init__(self, config: MySummariserConfig) -> None:
        """Load what is needed."""
        self._longer = config.longer
        self.identity = f"my-summariser/1:{config.longer:g}"

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return a bundle of advice. It must not reveal the answer: `without_leaks` drops advice that does."""
        # Ask your model here. `turns`, `program` and `verdict` of both attempts are at hand.
        best, worst = pair.best, pair.worst
        more = (
            "more"
            if best.tool_calls > worst.tool_calls
            else "fewer"
            if best.tool_calls < worst.tool_calls
            else "as many"
        )
        lengths = [len(one.program.gen_prompt) if one.program is not None else 0 for one in (best, worst)]
        detailed = lengths[0] > self._longer * lengths[1]
        advice = {
            "search_strategy": [f"Make {more} tool calls before you answer."],
            "prompt_construction": ["Describe every detail." if detailed else "Keep the prompt short and exact."],
        }
        return without_leaks(Experience(**bundle_head(request, pair)).guided(advice), request, (best, worst))
