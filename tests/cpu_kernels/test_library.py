"""The library is compiled once, and where it cannot be, the reason is told."""

import ctypes
import functools
import shutil
import subprocess

import pytest

import jaxmem as jm
from jaxmem.cpu_kernels import library

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, library.COMPILERS)), reason="there is no C++ compiler"
)


@pytest.fixture
def fresh_library():
    """`native` reads the environment again, and again after the test."""
    library._library.cache_clear()
    yield
    library._library.cache_clear()


def test_the_environment_turns_the_library_off(monkeypatch, fresh_library):
    monkeypatch.setenv("JAXMEM_NATIVE", "0")
    assert jm.native() == jm.Native(None, (), "JAXMEM_NATIVE=0 is in the environment")


def test_a_machine_without_a_compiler_is_told_so(monkeypatch, fresh_library):
    monkeypatch.delenv("JAXMEM_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert (
        jm.native().reason == "there is no C++ compiler: none of c++, g++, clang++ is on the path"
    )


def test_an_instruction_set_that_no_kernel_has_is_refused(monkeypatch, fresh_library):
    monkeypatch.setenv("JAXMEM_NATIVE", "sse9")
    with pytest.raises(ValueError, match="JAXMEM_NATIVE is 0, 1, avx2 or baseline, got 'sse9'"):
        jm.native()


def test_a_compiler_that_fails_is_told_with_its_message(monkeypatch, fresh_library, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.delenv("JAXMEM_NATIVE", raising=False)
    monkeypatch.setenv("CXX", str(compiler))
    native = jm.native()
    assert native.instruction_set is None
    assert native.reason.endswith("exit status 3.: out of order")


@needs_compiler
def test_the_cache_is_read_and_another_compiler_option_compiles_again(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMEM_CACHE", str(tmp_path))
    monkeypatch.delenv("JAXMEM_NATIVE", raising=False)
    command = ["c++" if shutil.which("c++") else "g++", *library.OPTIONS]
    digests = {library._digest([*command, level]) for level in ("-O1", "-O1", "-O2")}
    assert len(digests) == 2
    monkeypatch.setattr(library, "_digest", lambda command: "digest")
    cached = tmp_path / "native" / "digest.so"
    cached.parent.mkdir()
    cached.write_bytes(b"")
    assert library._compiled() == cached and cached.read_bytes() == b""


@needs_compiler
def test_products_are_tried_until_all_were_right_once(tmp_path):
    source, mark = tmp_path / "library.cc", tmp_path / "library.right"
    source.write_text('extern "C" const char* jaxmem_self_test() { return WHAT; }\n')

    def found(what):
        path = tmp_path / f"{what}.so"
        compiler = "c++" if shutil.which("c++") else "g++"
        run([compiler, "-shared", "-fPIC", f'-DWHAT="{what}"', source, "-o", path])
        return library._wrong_product(ctypes.CDLL(str(path)), mark)

    assert (found("one"), mark.exists()) == ("one", False)
    assert (found(""), mark.exists()) == ("", True)
    assert found("two") == ""


@pytest.fixture
def self_test(tmp_path):
    """A program that says what the self test finds."""
    program = tmp_path / "test.cc"
    program.write_text(
        '#include <cstdio>\n#include "self_test.h"\n'
        "int main() {\n"
        "  const std::string wrong = jaxmem::self_test();\n"
        "  std::puts(wrong.c_str());\n  return wrong.empty() ? 0 : 1;\n}\n"
    )
    return program


run = functools.partial(subprocess.run, check=False, capture_output=True, text=True)


@needs_compiler
@pytest.mark.parametrize("instructions", [None, *library.CHOSEN])
def test_no_kernel_reads_or_writes_beyond_its_arrays(self_test, monkeypatch, instructions):
    monkeypatch.setenv("JAXMEM_NATIVE", instructions or "1")
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    options = ["-std=c++17", "-O0", "-w", *library._instructions(), *checks, "-I", library.SOURCES]
    compiled = run(["c++", *options, self_test, "-o", self_test.with_suffix("")])
    if "cannot find" in compiled.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert compiled.returncode == 0, compiled.stderr
    result = run([self_test.with_suffix("")])
    assert result.returncode == 0, result.stdout + result.stderr


@needs_compiler
def test_kernels_for_avx512_compile(self_test):
    options = ["-std=c++17", "-fsyntax-only", "-w", "-march=icelake-server", "-I", library.SOURCES]
    compiled = run(["c++", *options, self_test])
    if "march" in compiled.stderr:
        pytest.skip("the compiler is not one for x86")
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.client
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="there is no compiler for ARM, or no emulator",
)
@pytest.mark.parametrize("instructions", ["armv8.2-a+dotprod", "armv8-a"])
def test_kernels_for_arm_are_right_under_an_emulator(self_test, instructions):
    options = ["-std=c++17", "-O1", "-w", "-static", f"-march={instructions}"]
    command = ["aarch64-linux-gnu-g++", *options, "-I", library.SOURCES, self_test]
    compiled = run([*command, "-o", self_test.with_suffix("")])
    assert compiled.returncode == 0, compiled.stderr
    result = run(["qemu-aarch64", self_test.with_suffix("")])
    assert result.returncode == 0, result.stdout + result.stderr
