"""`memory`: bytes of a compiled program on a CPU, and on TPUs that are not there."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxmem as jm
from jaxmem.compiler.compile_subprocess import CompileError, needed_bytes, versions
from jaxmem.compiler.memory_analysis import Memory, memory

V5E = "tpu v5e:1x1"
EARLY = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (20.82G) exceeds available HBM (15.75G)"
)
LATE = (
    "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 513.00M of "
    "512.00M hbm. Exceeded hbm capacity by 1.00M"
)


@pytest.fixture(autouse=True, scope="module")
def temporary_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMEM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def total(*trees):
    return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(trees))


def matmul(x, q):
    """A product, and x changed in place where it is donated."""
    wide = lax.dot_general(x, q.astype(x.dtype), (((1,), (0,)), ((), ())))
    return wide, x * 2


MATMUL = (array((64, 512), jnp.bfloat16), array((512, 1024), jnp.int4))


@pytest.mark.parametrize("dtype", ["int4", "uint8", "float16", "int8", "bfloat16"])
def test_arguments_on_cpu_are_the_bytes_of_the_tree(dtype):
    tree = {"w": array((6, 33), dtype), "s": array((33,), "float32")}
    assert memory(total, tree).arguments == jm.nbytes(tree)


def test_arguments_on_cpu_are_the_bytes_of_encoded_weights():
    enc = jax.eval_shape(jm.Int(4, group=32).encode, array((64, 48), "float32"))
    assert memory(total, enc).arguments == jm.nbytes(enc) < 64 * 48


def test_concrete_arguments_take_what_abstract_ones_do():
    x = jnp.ones((64, 512), jnp.bfloat16)
    assert memory(matmul, x, jnp.ones((512, 1024), jnp.int4)) == memory(matmul, *MATMUL)


@pytest.mark.parametrize("by_jit", [False, True])
def test_a_donated_argument_is_aliased_and_leaves_the_peak(by_jit):
    x = array((256, 512), "float32")
    undonated = memory(jnp.tanh, x)
    if by_jit:
        donated = memory(jax.jit(jnp.tanh, donate_argnums=0), x)
    else:
        donated = memory(jnp.tanh, x, donate_argnums=0)
    assert (undonated.aliased, donated.aliased) == (0, jm.nbytes(x))
    assert donated.peak == undonated.peak - donated.aliased


def test_the_peak_is_what_is_taken_less_what_is_aliased():
    m = memory(matmul, *MATMUL)
    assert m.peak == m.needed == m.arguments + m.outputs + m.temp - m.aliased
    assert m.outputs >= 64 * 1024 * 2 + 64 * 512 * 2
    assert json.loads(m.to_json())["peak"] == m.peak


def test_a_limit_on_cpu_is_compared_with_the_peak():
    x = array((1024, 1024), "float32")
    assert [memory(total, x, limit=n << 20).fits for n in (2, 8)] == [False, True]


def test_a_table_is_aligned_and_says_what_was_compiled():
    head, *rows = str(memory(matmul, *MATMUL)).splitlines()
    assert head.startswith(f"cpu: fits (compiled; jax {jax.__version__}")
    assert len({len(row) for row in rows}) == 1
    assert "estimate" in str(Memory(V5E, fits=False, estimate=5))


@pytest.mark.parametrize("device", ["gpu", "tpu", "tpu v9:1x1", "tpu v5e", "tpu v5e:0x1", "TPU"])
def test_an_unknown_device_is_refused_with_the_known_ones(device):
    with pytest.raises(ValueError, match=r"unknown device .*; expected 'cpu', .*v5e"):
        memory(total, array((2,), "float32"), device=device)


@pytest.mark.parametrize("device", ["cpu", V5E])
def test_the_users_own_error_comes_through_untouched(device):
    def broken(x):
        raise LookupError("mine")

    with pytest.raises(LookupError) as error:
        memory(broken, array((2,), "float32"), device=device)
    assert error.value.args == ("mine",) and error.value.__cause__ is None


def test_a_limit_of_no_memory_is_refused():
    with pytest.raises(ValueError, match="limit is 1000 bytes"):
        memory(total, array((2,), "float32"), limit=1000)


def test_a_missing_compiler_names_the_extra():
    with pytest.raises(ImportError, match=r'no-such-compiler: pip install "jaxmem\[tpu\]"'):
        versions("jax", "no-such-compiler")


@pytest.mark.parametrize(
    ("message", "want"),
    [
        (EARLY, int(20.82 * 2**30)),
        (EARLY.replace("E1000: CompileTimeHbmOom: ", ""), int(20.82 * 2**30)),
        (LATE, 513 << 20),
        ("Ran out of memory in memory space vmem. Used 17M of 16M vmem.", None),
    ],
)
def test_both_ways_to_run_out_of_memory_are_read(message, want):
    assert needed_bytes(message) == want


def test_tpu_bytes_are_the_trees_and_are_compiled_once():
    m = memory(matmul, *MATMUL, device=V5E, donate_argnums=0)
    assert m.fits and m.exact and m.limit == int(15.75 * 2**30)
    assert (m.arguments, m.temp) == (jm.nbytes(MATMUL), 0)
    assert m.aliased == jm.nbytes(MATMUL[0])
    assert set(m.versions) == {"jax", "jaxlib", "libtpu"}

    @functools.wraps(matmul)
    def on_other_lines(*args):
        return matmul(*args)

    again = memory(on_other_lines, *MATMUL, device=V5E, donate_argnums=0, timeout=1e-3)
    assert again == m  # nothing compiles in a thousandth of a second


def test_a_compiler_that_takes_too_long_is_ended():
    with pytest.raises(CompileError, match=r"more than 0\.001 s"):
        memory(matmul, *MATMUL, device=V5E, timeout=1e-3)


@pytest.mark.parametrize("quick", [True, False])
def test_a_program_over_its_limit_is_a_result_that_says_what_it_needs(quick):
    x = array((8192, 8192), "float32")
    m = memory(lambda x: x @ x, x, device=V5E, limit=300 << 20, quick=quick)
    assert not m.fits and not m.exact and m.temp is None
    assert 0.8 < m.needed / (2 * jm.nbytes(x)) < 1.1


@pytest.mark.slow
def test_quick_judges_by_the_limit_that_was_meant():
    x = array((4096, 4096), "float32")
    m = memory(lambda x: x @ x, x, device=V5E, quick=True)
    assert m.fits and not m.exact and m.limit > m.needed


@pytest.mark.slow
def test_figures_on_a_mesh_are_of_one_device():
    mesh = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("data", "model"))
    x = jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16, sharding=place)
    assert memory(jnp.tanh, x, device="tpu v5e:2x4").arguments == jm.nbytes(x) // 8
    assert memory(jnp.tanh, x, device="tpu v5e:2x2x2 slices").arguments == jm.nbytes(x) // 8
    with pytest.raises(ValueError, match="a mesh of 8 devices on 1"):
        memory(jnp.tanh, x, device=V5E)


@pytest.mark.slow
def test_what_nothing_reads_is_not_taken_on_tpu_either():
    x = array((512, 128), "float32")
    m = memory(lambda x, unread: x + 1, x, x, device=V5E)
    assert (m.arguments, m.outputs) == (jm.nbytes(x), jm.nbytes(x))


def test_figures_that_mislead_say_so():
    x, kernel = array((1, 8, 8, 4), "float32"), array((3, 3, 4, 8), "float32")
    layout = ("NHWC", "HWIO", "NHWC")
    run = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)
    assert "convolution" in memory(run, x, kernel).notes[0]
    assert memory(jnp.tanh, x, device="here").notes == ()  # here is a CPU
