"""Builds fastrobust's native modules with CMake and Ninja; without a compiler the package is pure Python.

Environment:
  FASTROBUST_CUDA=auto|0|1      build fastrobust._C_cuda when nvcc is found | never | or fail
  FASTROBUST_REQUIRE_NATIVE=1   fail, rather than fall back to pure Python, when fastrobust._C cannot be built
  TORCH_CUDA_ARCH_LIST          CUDA architectures, for example "8.0;9.0+PTX"
  MAX_JOBS                      parallel compiler processes (default: cores, fewer where memory is short)
  CXX, CUDACXX, CUDA_HOME       which compilers to use
Neither torch nor a GPU nor the network is needed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Distribution, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Kept between builds, so that editing one source compiles one object; setuptools' own moves with each editable install.
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
MODULES = ("_C", "_C_cuda")
GIB = 1024**3
MEMORY_PER_JOB = int(1.5 * GIB)  # what one nvcc process takes at its peak
COST = "Every function works through plain PyTorch instead, several times slower per attack step."


def say(text: str) -> None:
    print(f"fastrobust: {text}", file=sys.stderr, flush=True)


def flag(name: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, "").strip().lower() or allowed[0]
    if value not in allowed:
        raise SystemExit(f"fastrobust: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def jobs() -> int:
    asked = os.environ.get("MAX_JOBS", "").strip()
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise SystemExit(f"fastrobust: MAX_JOBS must be a positive integer, got {asked!r}")
        return int(asked)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        meminfo = Path("/proc/meminfo").read_text()
        available = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return cores
    return max(1, min(cores, available // MEMORY_PER_JOB))


def tool(name: str) -> str | None:
    """The program from this Python's own scripts (they may not be on PATH), or the system's."""
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def find_nvcc() -> str | None:
    named = os.environ.get("CUDACXX", "").strip()
    if named:
        return shutil.which(named)
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def compiler() -> list[str] | None:
    """The C++ compiler as a command: CXX, or the first of the usual names."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        return named if shutil.which(named[0]) else None
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


@functools.cache
def native_missing() -> str:
    """Why the native modules cannot be built here; "" when they can."""
    if os.name == "nt":
        return "native kernels are built with GCC or Clang on Linux and macOS, not on Windows."
    command = compiler()
    if command is None:
        wanted = os.environ.get("CXX", "").strip()
        return f"no C++ compiler was found ({f'CXX={wanted}' if wanted else 'c++, g++, clang++'}); install g++."
    for name in ("cmake", "ninja"):
        if not tool(name):
            return f"{name} was not found; install it from the system's packages or with: pip install {name}"
    if not importlib.util.find_spec("pybind11"):
        return "pybind11 was not found; install it with: pip install pybind11"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "probe.cpp"
        source.write_text("#include <Python.h>\n#include <cmath>\nstatic_assert(__cplusplus >= 201703L);\n")
        include = sysconfig.get_path("include")
        probe = [*command, "-std=c++17", f"-I{include}", "-c", str(source), "-o", f"{source}.o"]
        result = subprocess.run(probe, capture_output=True, text=True)
    if result.returncode == 0:
        return ""
    if "Python.h" in result.stderr:
        return f"Python.h was not found in {include}; install the Python headers (python3-dev)."
    return f"{shlex.join(command)} cannot compile C++17: {result.stderr.strip()[-400:]}"


class Failed(Exception):
    """CMake or a compiler failed; the message is what a user should read."""


class BuildNative(build_ext):
    """Builds with CMake, puts the modules into the package, and records how it went in _build_info.py."""

    def run(self) -> None:
        self.produced: list[Path] = []
        missing = {"_C": native_missing(), "_C_cuda": ""}
        facts: dict[str, object] = {}
        wants_cuda = flag("FASTROBUST_CUDA", ("auto", "0", "1"))
        nvcc = find_nvcc() if wants_cuda != "0" else None
        if wants_cuda == "1" and not nvcc:
            raise SystemExit(
                "fastrobust: FASTROBUST_CUDA=1 but no nvcc was found. Put nvcc on PATH, or set CUDA_HOME to the "
                "CUDA toolkit's folder or CUDACXX to nvcc itself; FASTROBUST_CUDA=0 builds for the CPU only."
            )
        for name in MODULES:  # a module of an earlier build must not outlive its source or its options
            self.module(name).unlink(missing_ok=True)

        if missing["_C"]:
            missing["_C_cuda"] = missing["_C"]
        else:
            try:
                facts = self.configure(None)
                self.compile("_C")
            except Failed as error:
                missing["_C"] = f"building it failed: {error}"
            if nvcc:
                try:
                    facts |= self.configure(nvcc)
                    self.compile("_C_cuda")
                except Failed as error:
                    missing["_C_cuda"] = f"building it with {nvcc} failed: {error}"
            else:
                off = "it was built with FASTROBUST_CUDA=0"
                missing["_C_cuda"] = off if wants_cuda == "0" else "no nvcc was found when it was built"
        self.report(missing, wants_cuda)
        self.record(missing, facts)

    def configure(self, nvcc: str | None) -> dict[str, object]:
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / "CMakeCache.txt").unlink(missing_ok=True)  # it may name a build environment that is gone
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "FASTROBUST_CUDA": "ON" if nvcc else "OFF",
        }
        command = compiler()
        if command and len(command) == 1:
            options["CMAKE_CXX_COMPILER"] = shutil.which(command[0])
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
        defines = [f"-D{name}={value}" for name, value in options.items()]
        self.cmake("-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *defines)
        facts: dict[str, object] = json.loads((BUILD / "build_facts.json").read_text())
        return facts

    def compile(self, name: str) -> None:
        self.cmake("--build", str(BUILD), "--target", name, "--parallel", str(jobs()))
        target = self.module(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BUILD / "fastrobust" / target.name, target)
        self.produced.append(target)

    def cmake(self, *arguments: str) -> None:
        command = [tool("cmake") or "cmake", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            lines = []
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line.strip())
        if process.returncode:
            errors = [line for line in lines if "error" in line.lower()]
            raise Failed((errors or lines or ["no output"])[0][:400])

    def report(self, missing: dict[str, str], wants_cuda: str) -> None:
        if missing["_C"]:
            if flag("FASTROBUST_REQUIRE_NATIVE", ("0", "1")) == "1" or wants_cuda == "1":
                raise SystemExit(f"fastrobust: the native modules are required, but {missing['_C']}")
            say(f"WARNING: installing without native kernels: {missing['_C']} {COST}")
        elif missing["_C_cuda"].startswith("building"):
            if wants_cuda == "1":
                raise SystemExit(f"fastrobust: FASTROBUST_CUDA=1, but {missing['_C_cuda']}")
            say(f"WARNING: installing without CUDA kernels: {missing['_C_cuda']} On a GPU: {COST}")

    def record(self, missing: dict[str, str], facts: dict[str, object]) -> None:
        values = {
            "MISSING": {name: why for name, why in missing.items() if why},
            "COMPILER": facts.get("compiler", ""),
            "ISAS": facts.get("isas", []) if not missing["_C"] else [],
            "OPENMP": facts.get("openmp", ""),
            "CUDA": facts.get("cuda", "") if not missing["_C_cuda"] else "",
            "CUDA_ARCHS": facts.get("cuda_archs", []) if not missing["_C_cuda"] else [],
        }
        lines = ['"""How this installation was built; written by setup.py. MISSING: why a module is absent."""']
        types: dict[type, str] = {dict: "dict[str, str]", list: "list[str]", str: "str"}
        lines += [f"{name}: {types[type(value)]} = {value!r}" for name, value in values.items()]
        path = self.package_folder() / "_build_info.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        self.produced.append(path)

    def package_folder(self) -> Path:
        return (ROOT if self.inplace else Path(self.build_lib).resolve()) / "fastrobust"

    def module(self, name: str) -> Path:
        return self.package_folder() / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else [str(path) for path in getattr(self, "produced", [])]

    def get_source_files(self) -> list[str]:
        return []  # MANIFEST.in lists csrc/

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    """As setuptools' own, but build_ext always runs: it also records why there is no native module."""

    sub_commands: ClassVar = [*(c for c in build.sub_commands if c[0] != "build_ext"), ("build_ext", None)]


class NativeDistribution(Distribution):
    """The wheel carries an ABI tag exactly where the native modules can be built."""

    def has_ext_modules(self) -> bool:
        return not native_missing()


setup(license="Apache-2.0", distclass=NativeDistribution, cmdclass={"build": Build, "build_ext": BuildNative})
