"""Bytes moved and flops, counted in a program's text, equal the known numbers."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxmem import Float, lift, nbytes
from jaxmem.compiler import cost_analysis, hlo
from jaxmem.compiler.memory_analysis import memory

LOOP = """
%body (s: (s32[], f32[4,8], f32[8])) -> (s32[], f32[4,8], f32[8]) {
  %s = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[8]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %w = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%s), index=2
  %y = f32[8]{0:T(128)S(1)} fusion(%w, %i, %x), kind=kLoop, calls=%row
  %one = s32[] constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  ROOT %t = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[8]{0:T(128)S(1)}) tuple(%next, %w, %y)
}
%row (w: f32[4,8], i: s32[], x: f32[8]) -> f32[8] {
  %w.1 = f32[4,8]{1,0} parameter(0)
  %i.1 = s32[]{:S(6)} parameter(1)
  %x.1 = f32[8]{0} parameter(2)
  %cut = f32[1,8]{1,0} dynamic-slice(%w.1, %i.1, %i.1), dynamic_slice_sizes={1,8}
  %flat = f32[8]{0} bitcast(%cut)
  ROOT %sum = f32[8]{0} add(%flat, %x.1)
}
%below (s: (s32[], f32[4,8], f32[8])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[8]{0:T(128)S(1)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %four = s32[] constant(4)
  ROOT %lt = pred[]{:T(512)S(6)} compare(%i.2, %four), direction=LT
}
ENTRY %main (w: f32[4,8], x: f32[8]) -> f32[8] {
  %w.2 = f32[4,8]{1,0} parameter(0)
  %x.2 = f32[8]{0:T(128)} parameter(1)
  %fast = f32[8]{0:T(128)S(1)} copy(%x.2)
  %zero = s32[]{:T(128)} constant(0)
  %all = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[8]{0:T(128)S(1)}) tuple(%zero, %w.2, %fast)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0}, f32[8]{0:T(128)S(1)}) while(%all), condition=%below, body=%body
  %out = f32[8]{0:T(128)S(1)} get-tuple-element(%loop), index=2
  %sum = f32[8]{0:T(128)} all-reduce(%out), to_apply=%add
  ROOT %back = f32[8]{0:T(128)} copy(%out)
}
"""  # noqa: E501


def test_a_slice_is_read_as_often_as_its_loop_runs_and_fast_memory_is_free():
    program = hlo.read(LOOP)
    rows, x, index = 4 * 32, 32, 4 * (4 + 4 + 4)
    assert cost_analysis.hbm_bytes(program) <= rows + 2 * x + index
    assert cost_analysis.hbm_bytes(program) >= rows + 2 * x
    assert cost_analysis.collective_bytes(program) == {"all-reduce": 32}


def test_flops_of_a_loop_are_its_bodys_times_its_trips():
    w = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    x = jax.ShapeDtypeStruct((3, 16), jnp.float32)
    step = lambda x, w: (x @ w, None)
    m = memory(lambda x, w: lax.scan(step, x, w)[0], x, w)
    assert m.flops == 5 * 2 * 3 * 16 * 16


def test_a_gradient_does_the_flops_of_two_more_products():
    w, x = (jax.ShapeDtypeStruct((16, 16), jnp.float32) for _ in range(2))
    loss = lambda w, x: (x @ w).sum()
    slopes = jax.value_and_grad(lambda w, x: (jnp.tanh(x @ w) @ w).sum(), (0, 1))
    assert memory(slopes, w, x).flops == 6 * 2 * 16**3
    assert memory(loss, w, x).flops == 2 * 16**3


def test_a_decode_step_on_a_tpu_reads_each_weight_once():
    w = jax.ShapeDtypeStruct((6, 1024, 1024), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((8, 1024), jnp.bfloat16)
    step = lambda x, w: (lax.dot(x, w, preferred_element_type=jnp.float32).astype(x.dtype), None)
    m = memory(lambda x, w: lax.scan(step, x, w)[0], x, w, device="tpu v5e:1x1")
    assert 1.0 <= m.traffic / m.arguments <= 1.01
    assert 0.9 < m.seconds / (m.arguments / 819e9) < 1.1


def test_a_kernel_reads_the_weight_once_for_each_of_its_blocks_of_inputs():
    w, x = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((576, 512), (600, 576)))
    leaf = jax.eval_shape(Float("mxfp4").encode, w)
    m = memory(lift(jnp.matmul), x, leaf, device="tpu v5e:1x1")
    passes, results = 3, 600 * 512 * 2
    assert m.flops == 2 * 600 * 576 * 512
    assert m.traffic == pytest.approx(x.size * 2 + passes * nbytes(leaf) + results, rel=0.01)


def test_what_another_core_is_called_to_gather_counts():
    text = """
%there (x: f32[32]) -> f32[256] {
  %x = f32[32]{0} parameter(0)
  ROOT %all = f32[256]{0} all-gather(%x), dimensions={0}
}, execution_thread="sparsecore"
ENTRY %main (x: f32[32]) -> f32[256] {
  %x.1 = f32[32]{0} parameter(0)
  %go = ((f32[32]{0}), f32[256]{0}) call-start(%x.1), to_apply=%there
  ROOT %done = f32[256]{0} call-done(%go)
}
"""
    program = hlo.read(text)
    assert cost_analysis.collective_bytes(program) == {"all-gather": 1024}
    assert cost_analysis.hbm_bytes(program) == 0
