"""Adapters: a few trainable numbers beside each frozen weight, which may be encoded."""

from .alpha import with_alpha as with_alpha
from .bottleneck import bottlenecks as bottlenecks
from .dora import with_magnitudes as with_magnitudes
from .frozen_factor import freeze_v as freeze_v
from .lora import adapters as adapters
from .lora import attach as attach
from .merged_weights import Merged as Merged
from .merged_weights import merge as merge
from .principal_directions import pissa as pissa
from .rounding_error import loftq as loftq
from .rounding_error import qera as qera
from .singular_triples import orthogonality as orthogonality
from .singular_triples import shrink as shrink
from .singular_triples import triples as triples
from .triple_importance import RankState as RankState
from .triple_importance import adaptive_rank as adaptive_rank
from .truncated_rank import truncate as truncate
