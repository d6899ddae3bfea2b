// Runs ranges of work on torch's threads, and holds a scratch buffer for each thread.
#include "sparseinfer/parallel.h"

#include <cstdlib>
#include <new>

namespace sparseinfer {
namespace {

ParallelForFn g_parallel_for = nullptr;
NumThreadsFn g_num_threads = nullptr;

struct Buffer {
  char* data = nullptr;
  int64_t size = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void set_parallel_for(ParallelForFn fn, NumThreadsFn threads) {
  g_parallel_for = fn;
  g_num_threads = threads;
}
bool has_parallel_for() { return g_parallel_for != nullptr; }

int64_t num_ranges(Spread spread) {
  if (spread.parts > 0) return spread.parts;
  uint32_t threads = 1;
  if (g_parallel_for == nullptr || g_num_threads == nullptr || g_num_threads(&threads) != 0) return 1;
  return threads > 0 ? threads : 1;
}

void parallel_for(int64_t items, Spread spread, RangeFn fn, void* ctx) {
  if (items <= 0) return;
  if (spread.parts == 0) {
    if (g_parallel_for != nullptr && items > 1 && g_parallel_for(0, items, 1, fn, ctx) == 0) return;
    return fn(0, items, ctx);
  }
  for (int part = 0; part < spread.parts; ++part) {
    const int64_t begin = items * part / spread.parts, end = items * (part + 1) / spread.parts;
    if (begin < end) fn(begin, end, ctx);
  }
}

char* thread_scratch(ScratchSlot slot, int64_t bytes) {
  thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.size = 0;
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.size = rounded;
  }
  return buffer.data;
}

}  // namespace sparseinfer
