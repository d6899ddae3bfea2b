// The interface of a loop that does nothing but keep one unit of the CPU busy, compiled for each level like a kernel.
#pragma once

#include <stdint.h>

namespace sparseinfer {

// Bytes that any loop reads at least, and one iteration of a loop that reads at most.
constexpr int64_t kProbeBytes = 4096;

struct ProbeLoop {
  // clock: cycles, by a chain of operations that take one cycle on every CPU; fma, dot, vnni, tile_...: multiply-adds,
  // of fp32, of bf16 pairs and of int8 quads; read: bytes
  const char* name;
  double steps;  // of one iteration

  // memory [kProbeBytes], or one iteration after another of a loop that reads, all 0.5f; the result [kProbeBytes] keeps
  // the compiler from leaving the work out.
  void (*run)(int64_t iterations, const float* memory, float* result);
};

}  // namespace sparseinfer
