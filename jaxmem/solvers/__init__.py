"""Solvers: one file, one algorithm that finds better numbers for a codec; each is a codec."""

from .searching import Search as Search
