"""The commands of `jaxmem`, one dataclass each: its fields are the options, `run(output)` works."""

from typing import Annotated

from tyro.conf import subcommand

from .card import MakeCard
from .demo import Demo
from .eval import Eval
from .export import Export
from .fit import Fit
from .generate import Generate
from .inspect import Inspect
from .output import Output as Output
from .plan import Plan
from .train import Train

Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Inspect, subcommand("inspect")]
    | Annotated[Fit, subcommand("fit")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[MakeCard, subcommand("card")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Export, subcommand("export")]
)
