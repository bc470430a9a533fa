"""jit for small tests, where compiling is all that takes time: 6 times faster on jax 0.10."""

import functools

import jax

OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # newer ones have no other emitters
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
