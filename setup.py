"""Builds the C++ extensions; everything else about the package stands in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

# Flags of GCC and Clang, for Linux and macOS; what is for one processor is guarded in csrc/.
# No contraction to fused multiply-add: blending must choose the same dataset on every processor.
INDICES = Pybind11Extension(
    "megascratch.data.tokens._indices",
    ["csrc/module.cpp"],
    depends=glob("csrc/*.h"),
    cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
)
# What psabi warns of, wide vectors as arguments, never happens: everything that has them is inlined.
CPU_KERNELS = Pybind11Extension(
    "megascratch.layers._cpu_kernels",
    ["csrc/cpu_kernels_module.cpp"],
    depends=["csrc/cpu_kernels.h"],
    cxx_std=17,
    extra_compile_args=["-O3", "-Wall", "-Wextra", "-Wno-psabi"],
)

setup(ext_modules=[INDICES, CPU_KERNELS], cmdclass={"build_ext": build_ext})
