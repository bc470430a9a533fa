"""A breakdown's parts add up to the peak, and name the arguments."""

import json

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.compiler import hlo
from jaxmem.compiler.live_buffers import at_peak, lines
from jaxmem.compiler.memory_breakdown import breakdown, plot
from jaxmem.compiler.residuals import residuals
from jaxmem.models import Model

CONFIG = llama.Config(
    vocab=2048, width=128, ffn=512, layers=4, heads=4, kv_heads=2, head_dim=32, tied=True
)
TINY = Model(CONFIG, llama.module(CONFIG), None, "tiny")


def build(task, **options):
    return jm.build(jm.Recipe("tiny", "cpu", task, 4, 256, **options), model=TINY)


@pytest.fixture(scope="module")
def plain():
    built = build("train", remat=jm.Remat("none"))
    m = jm.memory(built.step, *built.arguments)
    return built, m, breakdown(m, built.parts)


def test_the_parts_add_up_to_the_peak_and_arguments_are_exact(plain):
    built, m, table = plain
    assert sum(table.parts.values()) == m.peak
    for part, tree in built.parts.items():
        assert table.parts[part] == jm.nbytes(tree)


def test_the_largest_temporaries_have_a_purpose_and_a_line(plain):
    _, _, table = plain
    assert table.largest[0]["part"] == "kept for the backward pass"
    assert any("/jaxmem/architectures/" in buffer["line"] for buffer in table.largest)
    sizes = [buffer["bytes"] for buffer in table.largest]
    assert sizes == sorted(sizes, reverse=True)


def test_the_schedule_read_by_us_holds_what_the_compiler_says(plain):
    _, m, _ = plain
    live = at_peak(hlo.read(m.text))
    assert sum(buffer.nbytes for buffer in live) == pytest.approx(m.temp, rel=0.1)


def test_a_buffer_lives_to_its_last_use_and_results_are_not_temporary():
    text = """HloModule m, is_scheduled=true

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %near = f32[4096]{0:S(1)} broadcast(%x), dimensions={0}
  %a = f32[1024]{0} sine(%x)
  %b = f32[2048]{0} custom-call(%a), custom_call_target="f"
  %c = f32[2048]{0} add(%b, %b)
  ROOT %d = f32[1024]{0} slice(%c), slice={[0:1024]}
}
"""
    assert [buffer.op.name for buffer in at_peak(hlo.read(text))] == ["b", "a"]


def test_lines_are_the_callers_own():
    text = jm.memory(lambda x: jnp.sin(x) @ x, jnp.ones((64, 64))).text
    assert any(line.startswith(__file__) for line in lines(text).values())


def test_a_policy_that_keeps_more_leaves_more_residuals():
    def residual_bytes(remat):
        built = build("train", remat=remat, chunk=256)
        return residuals(built.loss, built.arguments[0]["params"], built.arguments[1])

    order = ["full", "dots_no_batch", "dots", "none"]
    sizes = [residual_bytes(jm.Remat(kind)) for kind in order]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[-1]
    attn_out = 4 * 4 * 256 * 128 * 2  # layers x batch x tokens x width in bfloat16
    assert residual_bytes(jm.Remat("named", ("attn_out",))) == sizes[0] + attn_out


def test_what_serves_names_its_cache(tmp_path):
    built = build("serve", encoding=jm.Int(8))
    table = breakdown(jm.memory(built.step, *built.arguments), built.parts)
    assert table.parts["KV cache"] == jm.nbytes(built.arguments[0])
    assert json.loads(table.to_json())["parts"] == table.parts
    assert "KV cache" in str(table)
    plot({"int8": table, "again": table}, tmp_path / "parts.png", limit=2**22)
    assert (tmp_path / "parts.png").read_bytes()[:4] == b"\x89PNG"


def test_an_estimate_has_no_parts():
    with pytest.raises(ValueError, match="wants a compiled program, got an estimate for tpu"):
        breakdown(jm.Memory("tpu v5e:1x1", estimate=5), {"x": jax.ShapeDtypeStruct((2,), "int8")})
