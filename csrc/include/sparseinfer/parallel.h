// Runs work on torch's threads: the addresses of torch's C functions are set once at import. Without them everything
// runs serially. This library has no thread pool of its own and does not link OpenMP.
#pragma once

#include <stdint.h>

namespace sparseinfer {

using RangeFn = void (*)(int64_t begin, int64_t end, void* ctx);
// int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFn, void* ctx); 0 means success.
using ParallelForFn = int32_t (*)(int64_t, int64_t, int64_t, RangeFn, void*);
// int32_t torch_get_num_threads(uint32_t* out); 0 means success.
using NumThreadsFn = int32_t (*)(uint32_t*);

void set_parallel_for(ParallelForFn fn, NumThreadsFn threads);
bool has_parallel_for();

// How a call is spread. kPool: torch's pool. n >= 1: exactly n consecutive ranges, one after another on this thread,
// which is how tests show that the results do not depend on the split.
struct Spread {
  int parts;
  static Spread pool() { return {0}; }
  static Spread serial() { return {1}; }
};

// Ranges that `parallel_for` cuts many items into.
int64_t num_ranges(Spread spread);

// std::runtime_error: this process was made by fork and the pool's threads stayed in its parent.
void parallel_for(int64_t items, Spread spread, RangeFn fn, void* ctx);

// Fewer elements of x are copied by one thread: a parallel region costs more. Chosen, not measured.
constexpr int64_t kSerialPrepare = int64_t{1} << 16;

// Memory that lives as long as the calling thread, grows on demand and is 64-byte aligned. Each slot is one buffer.
enum class ScratchSlot { kWorkspace, kThread, kStraddling, kImages, kHidden, kArena };
constexpr int kScratchSlots = 6;
char* thread_scratch(ScratchSlot slot, int64_t bytes);

}  // namespace sparseinfer
