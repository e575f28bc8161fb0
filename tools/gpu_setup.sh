#!/bin/sh
# Builds the native extension into src/echoc for one Python, with what the machine has: a C++ compiler, cmake, ninja and
# nanobind; nothing is fetched or installed. Then: PYTHONPATH=src python3 -m echoc doctor
# Usage: tools/gpu_setup.sh [PYTHON]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$("${1:-python3}" -c 'import sys; print(sys.executable)')
tag=$("$python" -c 'import sys; print(sys.implementation.cache_tag)')
build=$root/build/in-place-$tag
mkdir -p "$build"
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" \
  -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" >>"$build.log" 2>&1 || { tail -n 40 "$build.log"; exit 1; }
cp "$build"/_native.*.so "$root/src/echoc/"
PYTHONPATH=$root/src "$python" -c 'from echoc import _native; print("built", _native.__file__)'
