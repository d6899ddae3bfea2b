#!/bin/sh
# keep_output.sh COMPILER ... -o OBJECT ...: compiles, and leaves what the compiler says in OBJECT.log: the registers,
# spills and local memory of each kernel, which tests/cuda/test_cuda_build.py reads.
for argument; do
  [ "$previous" = -o ] && log=$argument.log
  previous=$argument
done
[ -n "$log" ] || exec "$@"
"$@" >"$log" 2>&1 && exit
status=$?
cat "$log" >&2
exit $status
