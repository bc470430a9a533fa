"""Structured removal: a smaller model, whose plain module runs at its own size and full speed."""

from .depth import least_missed as least_missed
from .depth import least_worth as least_worth
from .depth import remove_layers as remove_layers
from .heads import remove_heads as remove_heads
from .neurons import remove_neurons as remove_neurons
from .structures import fewer as fewer
from .width import remove_width as remove_width
