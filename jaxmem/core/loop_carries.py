"""The carries of a loop: those that its body returns unchanged, and those that move."""

from typing import Any


def scan_arity(params: dict) -> tuple[int, int]:
    """(how many constants, how many carries) a scan takes before its scanned arrays."""
    if "ft_in" in params:  # jax 0.12 packs the arity here
        n_const, n_carry = (len(p) for p in params["ft_in"].unpack()[:2])
        return n_const, n_carry
    return params["num_consts"], params["num_carry"]  # jax 0.10, 0.11


def passed_through(jaxpr: Any, n_before: int, carry: list) -> list[bool]:
    """For each carry of a loop, whether the body returns it unchanged: it may stay encoded.

    `n_before` inputs of the body come before the carry.
    """
    ins, outs = jaxpr.invars[n_before : n_before + len(carry)], jaxpr.outvars[: len(carry)]
    return [i is o for i, o in zip(ins, outs)]


def filled(carry: list, fixed: list[bool], state: list) -> list:
    """The carry with its moving values, those that are not `fixed`, taken from `state` in order."""
    rest = iter(state)
    return [v if f else next(rest) for v, f in zip(carry, fixed)]


def moving(carry: list, fixed: list[bool]) -> list:
    """The values of the carry that are not `fixed`."""
    return [v for v, f in zip(carry, fixed) if not f]
