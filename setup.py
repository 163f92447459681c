"""Builds the C++ extension; everything else about the package stands in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

setup(
    ext_modules=[Pybind11Extension("megascratch.data._indices", ["csrc/indices.cpp"], cxx_std=17)],
    cmdclass={"build_ext": build_ext},
)
