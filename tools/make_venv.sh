#!/usr/bin/env bash
# make_venv.sh DIR [PYTHON]: makes a virtual environment in DIR, or says in one line what this machine lacks for it.
#
# Without PYTHON the first interpreter that works is taken: 3.10 or newer, with venv and its C headers. The C++
# compiler is looked for here too, ahead of minutes of downloads.
set -euo pipefail

dir=$1
candidates=("${@:2}")
((${#candidates[@]})) || candidates=(python3.13 python3.12 python3.11 python3.10 python3)

fail() {
  echo "error: $*" >&2
  exit 1
}

# Says why the interpreter $1 cannot be used; nothing when it can.
defect() {
  command -v "$1" >/dev/null || { echo "is not installed"; return; }
  "$1" - 2>/dev/null <<'EOT' || echo "does not run"
import os, sys, sysconfig
if sys.version_info < (3, 10):
    print("is too old: %d.%d, needed is 3.10 or newer" % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("has no venv (install python3-venv)")
    else:
        if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
            print("has no C headers (install python3-dev)")
EOT
}

find_python() {
  local name reason reasons=""
  for name in "${candidates[@]}"; do
    reason=$(defect "$name")
    [[ -z $reason ]] && { echo "$name"; return; }
    [[ $reason == "is not installed" && ${#candidates[@]} -gt 1 ]] || reasons+="$name $reason; "
  done
  fail "no Python to work with: ${reasons:-none of ${candidates[*]} is installed; }set PYTHON=/path/to/python3"
}

compiles() {
  echo 'int main() {}' | "$@" -std=c++17 -x c++ -o /dev/null - 2>/dev/null
}

check_compiler() {
  if [[ -n ${CXX:-} ]]; then
    # Unquoted: CXX may hold a launcher and options.
    compiles $CXX || fail "the C++17 compiler CXX=$CXX does not work"
    return
  fi
  compiles c++ || compiles g++ || compiles clang++ ||
    fail "no C++17 compiler found (install g++ or clang, or set CXX)"
}

python=$(find_python)
check_compiler
echo "Making $dir with $("$python" --version) ..."
"$python" -m venv "$dir"
