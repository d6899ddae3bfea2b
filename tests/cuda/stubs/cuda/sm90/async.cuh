// Instead of csrc/cuda/sm90/async.cuh: each instruction as the PTX ISA defines it.
#pragma once

#include <cuda.h>

#include "cuda/common.cuh"

namespace sparseinfer {
namespace gpu {

inline void barrier_init(uint32_t barrier, int arrivals) {
  if (barrier % 8 != 0) throw std::runtime_error("mbarrier: not aligned");
  emulator::shared(barrier);
  emulator::g_own->barriers[barrier] = {arrivals, arrivals, 0, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) {
  --emulator::barrier(barrier).missing;
  emulator::barrier(barrier).end_phase();
}
inline void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  emulator::barrier(barrier).bytes += bytes;
  barrier_arrive(barrier);
}
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  while ((emulator::barrier(barrier).phase & 1) == parity) emulator::yield();
}
inline void complete(uint32_t barrier, int bytes) {
  emulator::barrier(barrier).bytes -= bytes;
  emulator::barrier(barrier).end_phase();
}

inline bool elected() { return emulator::lane() == 0; }

inline void copy_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) {
    throw std::runtime_error("cp.async.bulk: not aligned");
  }
  emulator::copy_later([=] {
    std::memcpy(emulator::shared(to), from, static_cast<size_t>(bytes));
    complete(barrier, bytes);
  });
}

// The swizzle is one of the address in shared memory.
inline uint32_t swizzled(uint32_t address, int span) {
  return address ^ ((address >> 7 & static_cast<uint32_t>(span / 16 - 1)) << 4);
}

inline void copy_box(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
  if (to % 128 != 0) throw std::runtime_error("cp.async.bulk.tensor: not aligned");
  const CUtensorMap held = map;
  emulator::copy_later([=] {
    for (int r = 0; r < held.box_rows; ++r) {
      for (int c = 0; c < held.box_columns; ++c) {
        uint16_t value = 0;
        if (row + r < held.rows && column + c < held.columns) {
          std::memcpy(&value, held.base + (row + r) * held.pitch + (column + c) * 2, 2);
        }
        const uint32_t at = to + static_cast<uint32_t>((r * held.box_columns + c) * 2);
        std::memcpy(emulator::shared(swizzled(at, held.swizzle)), &value, 2);
      }
    }
    complete(barrier, held.box_rows * held.box_columns * 2);
  });
}
inline void prefetch_map(const CUtensorMap&) {}

template <int>
void take_registers() {}
template <int>
void give_registers() {}

inline void wgmma_fence() {}
inline void wgmma_commit() { emulator::commit(emulator::fiber().open_products, emulator::fiber().product_groups); }
template <int kPending>
void wgmma_wait() {
  emulator::wait(emulator::fiber().products, emulator::fiber().product_groups, kPending);
}

template <int kSums>
void wgmma_hold(float (&)[kSums]) {}

// Element k of a row of an operand that lies along k; see "Matrix Descriptor Format".
template <class T>
float operand(uint64_t descriptor, int row, int k, T) {
  const uint64_t mode = descriptor >> 62, stride = (descriptor >> 32 & 0x3fff) << 4;
  const int row_bytes = mode == 1 ? 128 : mode == 2 ? 64 : 32;
  const uint64_t at = ((descriptor & 0x3fff) << 4) + static_cast<uint64_t>(row / 8) * stride +
                      static_cast<uint64_t>(row % 8 * row_bytes + k * 2);
  T value;
  std::memcpy(&value, emulator::shared(swizzled(static_cast<uint32_t>(at), row_bytes)), 2);
  return static_cast<float>(value);
}

// The sums of one thread, as in "Register Fragments" of wgmma.m64nNk16.
template <int kSums, class T>
void wgmma(float (&d)[kSums], uint64_t x, uint64_t w, T) {
  const int thread = emulator::g_current % 128, token = thread / 32 * 16 + thread % 32 / 4;
  float* sums = d;
  emulator::fiber().products.push_back([=] {
    float a[2][16];
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 16; ++k) a[half][k] = operand(x, token + 8 * half, k, T{});
    }
    for (int tile = 0; tile < kSums / 4; ++tile) {
      for (int c = 0; c < 2; ++c) {
        for (int k = 0; k < 16; ++k) {
          const float b = operand(w, 8 * tile + 2 * (thread % 4) + c, k, T{});
          for (int half = 0; half < 2; ++half) sums[4 * tile + 2 * half + c] += a[half][k] * b;
        }
      }
    }
  });
  ++emulator::fiber().open_products;
}

}  // namespace gpu
}  // namespace sparseinfer
