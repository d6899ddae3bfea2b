// CUDA on a CPU, as far as the kernels here use it: every thread of a block is a fiber, and one block, or the blocks of
// one cluster, run at a time.
//
// What is asynchronous happens as late as it may: copies when they are waited for, products of warpgroups too, so that
// a kernel that reads too early reads poison. What a GPU may do in any order happens in one order here: races between
// threads are not found, and neither is anything about speed.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparseinfer/halves.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  explicit dim3(unsigned n = 1) : x(n) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorCallRequiresNewerDriver = 36,
};

namespace emulator {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  std::deque<std::function<void()>> copies, products;  // of the group that is being filled: the last
  std::deque<size_t> copy_groups, product_groups;      // sizes of the groups before it
  size_t open_copies = 0, open_products = 0;
};

// Threads that wait for each other.
struct Meeting {
  int arrived = 0;
  unsigned generation = 0;
};

// mbarrier: a phase ends when all have arrived and all announced bytes have come.
struct Barrier {
  int expected = 0, missing = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;

  void end_phase() {
    if (missing < 0) throw std::runtime_error("mbarrier: more arrivals than it was made for");
    if (missing == 0 && bytes == 0) missing = expected, ++phase;
  }
};

// A block of threads; addresses of its shared memory begin at 1024, as on a GPU.
constexpr uint32_t kSharedBase = 1024;
struct Block {
  alignas(1024) char shared[256 * 1024];
  std::map<uint32_t, Barrier> barriers;
  Meeting meeting;
  int live = 0;
};

inline std::vector<std::unique_ptr<Block>> g_cluster;  // the blocks that run
inline Block* g_own = nullptr;                         // the block of the thread that runs
inline char* shared(uint32_t address) {
  if (address < kSharedBase || address >= kSharedBase + sizeof g_own->shared)
    throw std::runtime_error("shared memory: outside");
  return g_own->shared + (address - kSharedBase);
}
inline Barrier& barrier(uint32_t address) {
  const auto found = g_own->barriers.find(address);
  if (found == g_own->barriers.end()) throw std::runtime_error("mbarrier: not initialised");
  return found->second;
}

inline std::vector<Fiber> g_fibers;
inline int g_current = 0, g_threads = 0;
inline ucontext_t g_scheduler;
inline std::function<void()> g_body;
inline Meeting g_all;  // threads of the cluster
inline std::vector<Meeting> g_warps;
inline std::vector<std::array<uint32_t, 32>> g_exchange;
inline std::deque<std::function<void()>> g_engine;  // bulk copies under way
inline dim3 g_thread, g_block_index, g_grid;
inline std::string g_error;

// Queues a bulk copy of the block that runs.
inline void copy_later(std::function<void()> copy) {
  g_engine.push_back([own = g_own, copy = std::move(copy)] {
    g_own = own;
    copy();
  });
}

inline void yield() {
  Fiber& own = g_fibers[static_cast<size_t>(g_current)];
  swapcontext(&own.context, &g_scheduler);
}

inline void meet(Meeting& meeting, int expected) {
  const unsigned generation = meeting.generation;
  if (++meeting.arrived >= expected) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  while (meeting.generation == generation) yield();
}
inline int lane() { return g_current % 32; }
inline Meeting& warp() { return g_warps[static_cast<size_t>(g_current / 32)]; }
inline std::array<uint32_t, 32>& exchange() { return g_exchange[static_cast<size_t>(g_current / 32)]; }
inline Fiber& fiber() { return g_fibers[static_cast<size_t>(g_current)]; }

inline void trampoline() {
  try {
    g_body();
  } catch (const std::exception& error) {
    g_error = error.what();
  }
  fiber().done = true;
  --g_own->live;
  swapcontext(&fiber().context, &g_scheduler);
}

// Runs blocks [first, first + blocks), which see each other's shared memory.
inline void run_cluster(unsigned first, int blocks, int threads) {
  constexpr size_t kStack = 128 * 1024;
  const int all = blocks * threads;
  g_fibers.clear();
  g_fibers.resize(static_cast<size_t>(all));
  g_warps.assign(static_cast<size_t>(all / 32), {});
  g_exchange.assign(static_cast<size_t>(all / 32), {});
  g_all = {};
  g_engine.clear();
  g_threads = threads;
  g_cluster.clear();
  for (int i = 0; i < blocks; ++i) {
    g_cluster.push_back(std::make_unique<Block>());
    g_cluster.back()->live = threads;
    std::memset(g_cluster.back()->shared, 0xff, sizeof g_cluster.back()->shared);
  }
  for (Fiber& f : g_fibers) {
    f.stack.reset(new char[kStack]);
    getcontext(&f.context);
    f.context.uc_stack = {f.stack.get(), 0, kStack};
    f.context.uc_link = nullptr;
    makecontext(&f.context, trampoline, 0);
  }
  const auto live = [] {
    return std::any_of(g_cluster.begin(), g_cluster.end(), [](const auto& block) { return block->live > 0; });
  };
  for (int64_t round = 0; live() && g_error.empty(); ++round) {
    if (round > 2'000'000) throw std::runtime_error("threads wait for each other forever");
    for (g_current = 0; g_current < all; ++g_current) {
      if (fiber().done) continue;
      const int block = g_current / threads;
      g_own = g_cluster[static_cast<size_t>(block)].get();
      g_thread.x = static_cast<unsigned>(g_current % threads);
      g_block_index.x = first + static_cast<unsigned>(block);
      swapcontext(&g_scheduler, &fiber().context);
    }
    // Copies come one by one and in any order.
    if (!g_engine.empty()) {
      const auto next = g_engine.begin() + round % static_cast<int64_t>(g_engine.size());
      const auto copy = *next;
      g_engine.erase(next);
      copy();
    }
  }
  if (!g_error.empty()) throw std::runtime_error(g_error);
  if (!g_engine.empty()) throw std::runtime_error("the block ended with copies under way");
}

// The last `open` actions of a queue become a group; all groups but the newest `pending` happen.
inline void commit(size_t& open, std::deque<size_t>& groups) {
  groups.push_back(open);
  open = 0;
}
inline void wait(std::deque<std::function<void()>>& queue, std::deque<size_t>& groups, size_t pending) {
  while (groups.size() > pending) {
    for (size_t i = groups.front(); i > 0; --i) {
      queue.front()();
      queue.pop_front();
    }
    groups.pop_front();
  }
}

}  // namespace emulator

#define threadIdx (::emulator::g_thread)
#define blockIdx (::emulator::g_block_index)
#define gridDim (::emulator::g_grid)

// Functions of CUDA C++ --------------------------------------------------------------------------------------------

inline void __syncthreads() { emulator::meet(emulator::g_own->meeting, emulator::g_own->live); }
inline void __syncwarp() { emulator::meet(emulator::warp(), 32); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4, "one word");
  std::memcpy(&emulator::exchange()[static_cast<size_t>(emulator::lane())], &value, 4);
  __syncwarp();
  T got;
  std::memcpy(&got, &emulator::exchange()[static_cast<size_t>(emulator::lane() ^ mask)], 4);
  __syncwarp();
  return got;
}
inline int __reduce_max_sync(unsigned, int value) {
  emulator::exchange()[static_cast<size_t>(emulator::lane())] = static_cast<uint32_t>(value);
  __syncwarp();
  int most = value;
  for (const uint32_t other : emulator::exchange()) most = std::max(most, static_cast<int>(other));
  __syncwarp();
  return most;
}
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
template <class T>
T __ldg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % alignof(T) != 0) throw std::runtime_error("a load that is not aligned");
  return *at;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}
inline float __uint_as_float(uint32_t bits) { return sparseinfer::from_bits(bits); }
inline float normcdff(float v) { return 0.5f * std::erfc(-v * 0.70710678f); }
inline uint32_t __cvta_generic_to_shared(const void* at) {
  return emulator::kSharedBase + static_cast<uint32_t>(static_cast<const char*>(at) - emulator::g_own->shared);
}
using std::max;
using std::min;

// 16-bit floats ----------------------------------------------------------------------------------------------------

struct __nv_bfloat16 {
  uint16_t bits = 0;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) {
    sparseinfer::BF16 held;
    sparseinfer::narrow(v, &held);
    bits = held.bits;
  }
  explicit operator float() const { return sparseinfer::widen(sparseinfer::BF16{bits}); }
};
struct __half {
  uint16_t bits = 0;
  __half() = default;
  explicit __half(float v) {
    sparseinfer::F16 held;
    sparseinfer::narrow(v, &held);
    bits = held.bits;
  }
  explicit operator float() const { return sparseinfer::widen(sparseinfer::F16{bits}); }
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct __half2 {
  __half x, y;
};
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(const __half2& v) { return {static_cast<float>(v.x), static_cast<float>(v.y)}; }

// The runtime ------------------------------------------------------------------------------------------------------

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}

namespace emulator {

// As sparseinfer::gpu::start_clusters; clusters of more than 8 blocks are not portable.
template <class... Parameters>
cudaError_t start_clusters(void (*kernel)(Parameters...), unsigned blocks, unsigned size, int threads,
                           size_t shared_bytes, cudaStream_t, Parameters... parameters) {
  if (shared_bytes > 227 * 1024 || threads % 32 != 0 || size == 0 || size > 8 || blocks % size != 0) {
    return cudaErrorInvalidValue;
  }
  g_grid = dim3(blocks);
  g_body = [&] { kernel(parameters...); };
  for (unsigned block = 0; block < blocks; block += size) run_cluster(block, static_cast<int>(size), threads);
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t start(void (*kernel)(Parameters...), unsigned blocks, int threads, size_t shared_bytes, cudaStream_t stream,
                  Parameters... parameters) {
  return start_clusters(kernel, blocks, 1, threads, shared_bytes, stream, parameters...);
}

}  // namespace emulator
