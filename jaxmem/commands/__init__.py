"""What each `jaxmem` command takes and does: a dataclass with `run(output) -> dict`."""

from typing import Annotated

from tyro.conf import subcommand

from .demonstrating import Demo
from .evaluating import Eval
from .exporting import Export
from .fitting import Fit
from .generating import Generate
from .inspecting import Inspect
from .output import Output as Output
from .planning import Plan

Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Inspect, subcommand("inspect")]
    | Annotated[Fit, subcommand("fit")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Export, subcommand("export")]
)
