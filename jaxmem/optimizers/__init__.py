"""Optimizer state and weights in fewer bytes: wrappers of any optax optimizer, and optimizers."""

from .bfloat16_state import in_bfloat16 as in_bfloat16
from .column_normalized_sgd import scale_sgd as scale_sgd
from .float32_state import in_float32 as in_float32
from .int4_state import in_int4 as in_int4
from .int8_state import in_int8 as in_int8
from .projected_moments import apollo as apollo
from .rounded_updates import apply_rounded as apply_rounded
from .shared_second_moments import adam_mini as adam_mini
from .split_leaf import joined_weights as joined_weights
from .split_leaf import split_weights as split_weights
from .stochastic_rounding import stochastic_round as stochastic_round
