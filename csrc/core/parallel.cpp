// Runs ranges of work on torch's threads, and holds a scratch buffer for each thread.
#include "sparseinfer/parallel.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "sparseinfer/memory.h"

namespace sparseinfer {
namespace {

ParallelForFn g_parallel_for = nullptr;
NumThreadsFn g_num_threads = nullptr;

// A child made by fork has this process's memory and none of its threads: a region there would wait for them forever.
std::atomic<bool> g_pool_runs{false}, g_pool_lost{false};
void lose_pool() {
  if (g_pool_runs.load()) g_pool_lost.store(true);
}

// Threads that a region is spread over; 1 is this one.
int64_t pool_threads() {
  uint32_t threads = 1;
  if (g_parallel_for == nullptr || g_num_threads == nullptr || g_num_threads(&threads) != 0) return 1;
  return threads > 0 ? threads : 1;
}

void use_pool() {
  if (pool_threads() == 1) return;
  if (g_pool_lost.load(std::memory_order_relaxed)) {
    throw std::runtime_error(
        "threads: expected a process that has torch's threads, got one made by fork from a process that had started "
        "them (start processes by \"spawn\" or \"forkserver\", or call torch.set_num_threads(1) in this one)");
  }
  g_pool_runs.store(true, std::memory_order_relaxed);
}

struct Buffer {
  char* data = nullptr;
  int64_t size = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void set_parallel_for(ParallelForFn fn, NumThreadsFn threads) {
  g_parallel_for = fn;
  g_num_threads = threads;
  static const int registered = pthread_atfork(nullptr, nullptr, lose_pool);
  static_cast<void>(registered);
}
bool has_parallel_for() { return g_parallel_for != nullptr; }

int64_t num_ranges(Spread spread) { return spread.parts > 0 ? spread.parts : pool_threads(); }

void parallel_for(int64_t items, Spread spread, RangeFn fn, void* ctx) {
  if (items <= 0) return;
  if (spread.parts == 0) {
    if (items > 1) {
      use_pool();
      if (g_parallel_for != nullptr && g_parallel_for(0, items, 1, fn, ctx) == 0) return;
    }
    return fn(0, items, ctx);
  }
  for (int part = 0; part < spread.parts; ++part) {
    const int64_t begin = items * part / spread.parts, end = items * (part + 1) / spread.parts;
    if (begin < end) fn(begin, end, ctx);
  }
}

char* thread_scratch(ScratchSlot slot, int64_t bytes) {
  thread_local Buffer buffers[kScratchSlots];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.size = 0;
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    prefer_huge_pages(buffer.data, rounded);
    buffer.size = rounded;
  }
  return buffer.data;
}

}  // namespace sparseinfer
