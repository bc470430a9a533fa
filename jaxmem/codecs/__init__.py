"""Codecs: one file, one formula. A codec is a frozen dataclass whose `encode` makes a leaf."""

from .casting import Cast as Cast
from .chaining import Chain as Chain
from .integer import Int as Int
from .keeping import Keep as Keep
from .lowrank import LowRank as LowRank
