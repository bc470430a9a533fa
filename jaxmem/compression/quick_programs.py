"""Compiler options for programs that take longer to compile than to run, on a CPU."""

import jax

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # newer ones have no other emitters
    QUICK_TO_COMPILE["xla_cpu_use_fusion_emitters"] = False
# The lowest level that uses vector instructions: code several times as fast, with the same bits.
QUICK_AND_VECTORIZED = QUICK_TO_COMPILE | {"xla_backend_optimization_level": 1}
