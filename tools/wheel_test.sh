#!/usr/bin/env bash
# wheel_test.sh PYTHON [TORCH]: builds the source distribution outside of git and the wheel from it, installs the
# wheel into an environment of its own with TORCH ("torch==2.11.*"; else as constraints.txt has it), and tests it
# there, away from the sources. PYTHON has the build tools. On x86 with qemu-x86_64, `_core` also runs on a CPU
# without AVX. The wheel is left in dist/.
set -euo pipefail

python=$(realpath -s "$1")
torch=${2:-torch}
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

say 'source distribution, outside of git'
mkdir "$work/copy" "$work/sdist" "$here/dist" 2>/dev/null || true
tar -C "$here" -cf - --exclude='*.so' --exclude=__pycache__ CMakeLists.txt LICENSE README.md constraints.txt \
    pyproject.toml .gitignore bench csrc docs sparseinfer tests tools | tar -C "$work/copy" -xf -
(cd "$work/copy" && "$python" -c "
import sys
from scikit_build_core.build import build_sdist
build_sdist(sys.argv[1])" "$work/sdist")

say 'wheel, from the source distribution'
"$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation \
    -C cmake.define.SPARSEINFER_CUDA=OFF --wheel-dir "$work/wheel" "$work"/sdist/*.tar.gz
cp "$work"/wheel/*.whl "$here/dist/"
ls -l "$here"/dist/*.whl

say "installed with $torch"
"$python" -m venv "$work/venv"
bin=$work/venv/bin
constraints=$here/constraints.txt
[[ $torch == torch ]] || { grep -v '^torch==' "$here/constraints.txt" >"$work/constraints.txt"; constraints=$work/constraints.txt; }
"$bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$constraints" \
    "$work"/wheel/*.whl "$torch" pytest hypothesis scipy
"$bin/python" -m pip check
cp -r "$here/tests" "$here/pyproject.toml" "$work/"
cd "$work"
"$bin/sparseinfer" doctor
"$bin/python" tests/wheel/smoke.py
# Kernels and formats: what a wheel may have built wrongly.
"$bin/python" -m pytest -q -p no:cacheprovider -m 'not slow' tests/formats tests/ops/test_kernels.py

if [[ $(uname -m) == x86_64 ]]; then
  if command -v qemu-x86_64 >/dev/null; then
    say 'a CPU without AVX'
    # numpy's OpenBLAS takes this CPU for a newer one.
    OPENBLAS_CORETYPE=Nehalem qemu-x86_64 -cpu Nehalem "$bin/python" tests/wheel/no_avx.py
  else
    say 'not tested on a CPU without AVX: qemu-x86_64 is not installed (apt-get install qemu-user)'
  fi
fi
