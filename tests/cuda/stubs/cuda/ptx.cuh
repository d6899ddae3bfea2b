// Instead of csrc/cuda/ptx.cuh: each instruction as the PTX ISA defines it.
#pragma once

#include "cuda/launchers.h"
#include "cuda/start.h"

namespace sparseinfer {
namespace gpu {

inline char* dynamic_shared() { return emulator::g_shared; }

inline void copy_async(uint32_t to, const void* from, bool exists) {
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::runtime_error("cp.async: not aligned");
  emulator::fiber().copies.push_back([=] {
    if (exists) {
      std::memcpy(emulator::shared(to), from, 16);
    } else {
      std::memset(emulator::shared(to), 0, 16);
    }
  });
  ++emulator::fiber().open_copies;
}
inline void copy_commit() { emulator::commit(emulator::fiber().open_copies, emulator::fiber().copy_groups); }
template <int kPending>
void copy_wait() {
  emulator::wait(emulator::fiber().copies, emulator::fiber().copy_groups, kPending);
}

inline void load_matrices(uint32_t at, uint32_t (&out)[4]) {
  auto& addresses = emulator::exchange();
  const auto lane = static_cast<size_t>(emulator::lane());
  addresses[lane] = at;
  __syncwarp();
  for (size_t matrix = 0; matrix < 4; ++matrix) {
    std::memcpy(&out[matrix], emulator::shared(addresses[8 * matrix + lane / 4]) + 4 * (lane % 4), 4);
  }
  __syncwarp();
}

template <class T>
float element(uint32_t word, int half, T) {
  const auto bits = static_cast<uint16_t>(word >> 16 * half);
  T value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

// Fragments as in "Matrix Fragments for mma.m16n8k16".
template <class T>
void mma(float* sums, const uint32_t (&x)[4], const uint32_t* w, T) {
  float a[16][16], b[8][16];
  for (int i = 0; i < 6; ++i) {
    auto& words = emulator::exchange();
    words[static_cast<size_t>(emulator::lane())] = i < 4 ? x[i] : w[i - 4];
    __syncwarp();
    for (int lane = 0; lane < 32; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const float v = element(words[static_cast<size_t>(lane)], half, T{});
        const int group = lane / 4, k = 2 * (lane % 4) + half;
        if (i < 4) {
          a[group + i % 2 * 8][k + i / 2 * 8] = v;
        } else {
          b[group][k + (i - 4) * 8] = v;
        }
      }
    }
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) {
    const int token = emulator::lane() / 4 + i / 2 * 8, row = 2 * (emulator::lane() % 4) + i % 2;
    for (int k = 0; k < 16; ++k) sums[i] += a[token][k] * b[row][k];
  }
}

}  // namespace gpu
}  // namespace sparseinfer
