"""Optimizer state in fewer bytes: wrappers of any optax optimizer, and stochastic rounding."""

from .bfloat16_state import in_bfloat16 as in_bfloat16
from .float32_state import in_float32 as in_float32
from .int8_state import in_int8 as in_int8
from .stochastic_rounding import apply_rounded as apply_rounded
from .stochastic_rounding import stochastic_round as stochastic_round
