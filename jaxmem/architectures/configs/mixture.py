"""Mixture: the sizes of a mixture of experts, and how its router chooses."""

import dataclasses

from .config_sizes import check_sizes, check_types

_SCORES = ("softmax", "sigmoid", "sparsemixer")
_GROUP_SCORES = ("max", "top2")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The sizes of a mixture of experts, and how its router chooses (Shazeer et al., 2017).

    `dense` has a bool for each layer: where it is true, the layer has an MLP of `Config.ffn`
    neurons in place of experts. If `dense` is empty, every layer has experts.

    Example:
        >>> Mixture(experts=8, per_token=2, ffn=64, scores="sigmoid").groups
        1
        >>> Mixture(experts=8, per_token=9, ffn=64)
        Traceback (most recent call last):
        ValueError: per_token is 9, expected at most the 8 experts that can be chosen

    Raises:
        ValueError: sizes or options do not fit each other.
    """

    experts: int
    per_token: int
    ffn: int  # neurons of an expert
    scores: str = "softmax"  # of all experts' logits, or "sigmoid", or "sparsemixer"
    renormalized: bool = False  # the weights of the chosen experts sum to 1
    scale: float = 1.0  # factor of the weights
    correction: bool = False  # a number for each expert, added to the scores for the choice only
    jitter: float = 0.01  # of "sparsemixer": the width in which logits count as close
    groups: int = 1  # experts are chosen from `groups_per_token` of `groups` groups
    groups_per_token: int = 1
    group_score: str = "max"  # of a group: its highest score, or "top2", the sum of two
    scales_inputs: bool = False  # an expert's input is multiplied by its weight, not its output
    router_bias: bool = False
    expert_bias: bool = False
    shared_ffn: int = 0  # neurons of an expert that every token goes to
    shared_gate: bool = False  # its output times a sigmoid
    swiglu_limit: float = 0.0  # gate and up are cut to it, and (up + 1) takes the place of up
    swiglu_alpha: float = 1.702  # with `swiglu_limit`, the activation is x * sigmoid(alpha * x)
    dense: tuple[bool, ...] = ()

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "dense", tuple(self.dense))
        check_sizes(self, "experts", "per_token", "ffn", "groups", "groups_per_token")
        for name, words in (("scores", _SCORES), ("group_score", _GROUP_SCORES)):
            if getattr(self, name) not in words:
                expected = " or ".join(words)
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")
        if self.experts % self.groups or self.groups_per_token > self.groups:
            raise ValueError(
                f"{self.groups_per_token} of {self.groups} groups of {self.experts} experts, "
                "expected groups of equal size, and at most all of them"
            )
        of_group = self.experts // self.groups
        if self.per_token > of_group * self.groups_per_token:
            raise ValueError(
                f"per_token is {self.per_token}, expected at most the "
                f"{of_group * self.groups_per_token} experts that can be chosen"
            )
        if self.group_score == "top2" and self.groups > 1 and of_group < 2:
            raise ValueError(f"group_score is 'top2' with {of_group} expert in a group, expected 2")
        if self.scores == "sparsemixer" and (self.per_token != 2 or self.groups > 1):
            raise ValueError("sparsemixer chooses 2 experts of one group")
        if self.shared_gate and not self.shared_ffn:
            raise ValueError("shared_gate is set without shared_ffn")
