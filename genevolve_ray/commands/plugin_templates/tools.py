"""A tool, and the toolbox that offers it to the policy."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from genevolve_ray.atlas.sources import AtlasTools, WorldConfig
from genevolve_ray.errors import ToolArgumentError
from genevolve_ray.records.base import Config
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.observation import TextObservation
from genevolve_ray.tools.protocol import EpisodeContext, Tool

_OPERATIONS: dict[type[ast.AST], Callable[[float, float], float]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub},
    **{ast.Mult: operator.mul, ast.Div: operator.truediv},
}


class MyTool:
    """Let the policy calculate with numbers."""

    name = "my_tool"  # The policy calls the tool by this name, and reads the next two in its system prompt.
    description = "Calculate an expression of numbers with + - * / and brackets."
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {"expression": {"type": "string", "maxLength": 100, "examples": ["2 * (3 + 4)"]}},
        "required": ["expression"],
    }

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> TextObservation:
        """Return what the policy reads. It also reads the message of a ToolArgumentError, and may try again."""
        # Do your work here. Arguments that the schema forbids never arrive. Where an outside service fails, raise
        # InfraFailure: the sample is then drawn again.
        expression = arguments["expression"]
        try:
            value = _value(ast.parse(expression, mode="eval").body)
        except (SyntaxError, ArithmeticError, KeyError, RecursionError, ValueError) as error:
            raise ToolArgumentError(f"expression: {expression!r} cannot be calculated") from error
        return TextObservation(text=f"{expression} = {value:g}")


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.BinOp):
        operation = _OPERATIONS[type(node.op)]
        return operation(_value(node.left), _value(node.right))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    raise ValueError("neither a number nor an operation")


class MyToolsConfig(Config):
    """Configure the toolbox. Every field is a key under `tools.config`."""

    atlas: WorldConfig = WorldConfig()
    """Settings of the tools of the atlas."""


class MyTools:
    """Offer the tool, and those of the atlas, which its requests need."""

    Config = MyToolsConfig
    local = True  # The tools only use memory: rollout workers hold them. Leave it out for tools that call a service.

    def __init__(self, config: MyToolsConfig, images: ImageStore) -> None:
        """Build the tools. A tool that finds pictures puts them into `images` and returns their references."""
        # `genevolve_ray.tools.toolbox:LocalTools` offers the same three over your corpus, `tools.web:WebTools` over the web.
        self.tools: dict[str, Tool] = {**AtlasTools(config.atlas, images).tools, MyTool.name: MyTool()}
