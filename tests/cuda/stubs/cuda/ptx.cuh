// Instead of csrc/cuda/ptx.cuh: each instruction as the PTX ISA defines it.
#pragma once

#include "cuda/launchers.h"
#include "cuda/start.h"

namespace sparseinfer {
namespace gpu {

inline char* dynamic_shared() { return emulator::g_own->shared; }

inline uint4 load_now(const void* at) { return __ldg(static_cast<const uint4*>(at)); }

inline uint32_t uniform(uint32_t v) {
  const auto most = static_cast<uint32_t>(__reduce_max_sync(~0u, static_cast<int>(v)));
  if (most != v) throw std::runtime_error("a value that is not the same for all lanes");
  return v;
}

template <class V>
V loaded(uint32_t at) {
  if (at % sizeof(V) != 0) throw std::runtime_error("ld.shared: not aligned");
  V v;
  std::memcpy(&v, emulator::shared(at), sizeof v);
  return v;
}
inline uint32_t load_shared_u8(uint32_t at) { return loaded<uint8_t>(at); }
inline uint32_t load_shared_u16(uint32_t at) { return loaded<uint16_t>(at); }
inline uint32_t load_shared(uint32_t at) { return loaded<uint32_t>(at); }
inline void load_shared(uint32_t at, uint32_t (&v)[4]) {
  const uint4 words = loaded<uint4>(at);
  v[0] = words.x, v[1] = words.y, v[2] = words.z, v[3] = words.w;
}
template <class V>
void stored(uint32_t at, V v) {
  if (at % sizeof(V) != 0) throw std::runtime_error("st.shared: not aligned");
  std::memcpy(emulator::shared(at), &v, sizeof v);
}
inline void store_shared_u16(uint32_t at, uint32_t low) { stored(at, static_cast<uint16_t>(low)); }
inline void store_shared(uint32_t at, const uint4& v) { stored(at, v); }

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
