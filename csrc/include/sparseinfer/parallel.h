// Threads are torch's own: the address of its C function `torch_parallel_for` is handed in once at import. Without it
// everything runs serially. This library owns no pool and links no OpenMP.
#pragma once

#include <stdint.h>

namespace sparseinfer {

using RangeFn = void (*)(int64_t begin, int64_t end, void* ctx);
// int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn, void* ctx); 0 means success.
using ParallelForFn = int32_t (*)(int64_t, int64_t, int64_t, RangeFn, void*);

void set_parallel_for(ParallelForFn fn);
bool has_parallel_for();

// How a call is spread. kPool: torch's pool. n >= 1: exactly n consecutive ranges, one after another on this thread,
// which is how tests show that the results do not depend on the split.
struct Spread {
  int parts;
  static Spread pool() { return {0}; }
  static Spread serial() { return {1}; }
};

void parallel_for(int64_t items, Spread spread, RangeFn fn, void* ctx);

// Memory that lives as long as the calling thread, grows on demand and is 64-byte aligned. Each slot is one buffer.
enum class ScratchSlot { kWorkspace, kThread };
char* thread_scratch(ScratchSlot slot, int64_t bytes);

}  // namespace sparseinfer
