// The tile unit in plain C++: registers of each thread, and the operations of the Intel manual in its order, so that
// sums have the bits of the hardware. What the hardware would refuse ends the process.
#pragma once

#include <stdint.h>
#include <string.h>

#include "sparseinfer/halves.h"

namespace sparseinfer {
namespace {
namespace tile {

struct Register {
  int rows, row_bytes;
  unsigned char bytes[kTileRows][kTileRowBytes];

  template <class T>
  T get(int row, int column) const {
    T value;
    memcpy(&value, bytes[row] + column * static_cast<int>(sizeof(T)), sizeof(T));
    return value;
  }
  template <class T>
  void set(int row, int column, T value) {
    memcpy(bytes[row] + column * static_cast<int>(sizeof(T)), &value, sizeof(T));
  }
};

thread_local Register registers[8];
thread_local bool configured;

inline void must(bool holds) {
  if (!holds) __builtin_trap();
}

inline Register& usable(int t) {
  must(configured && registers[t].rows > 0 && registers[t].row_bytes > 0);
  return registers[t];
}

inline void load_config(const TileConfig& config) {
  must(config.palette <= 1 && config.start_row == 0);
  memset(registers, 0, sizeof registers);
  configured = config.palette == 1;
  for (int i = 0; i < 16; ++i) {
    must(i < 8 || (config.rows[i] == 0 && config.row_bytes[i] == 0));
    must(config.rows[i] <= kTileRows && config.row_bytes[i] <= kTileRowBytes);
    if (i < 8) registers[i].rows = config.rows[i];
    if (i < 8) registers[i].row_bytes = config.row_bytes[i];
  }
}
inline void release() { load_config(TileConfig{}); }

template <int T>
inline void zero() {
  memset(usable(T).bytes, 0, sizeof registers[T].bytes);
}
template <int T>
inline void load_rows(const void* from, int64_t step) {
  Register& to = usable(T);
  memset(to.bytes, 0, sizeof to.bytes);
  for (int r = 0; r < to.rows; ++r) {
    memcpy(to.bytes[r], static_cast<const char*>(from) + r * step, static_cast<size_t>(to.row_bytes));
  }
}
template <int T>
inline void store_rows(void* to, int64_t step) {
  const Register& from = usable(T);
  for (int r = 0; r < from.rows; ++r) {
    memcpy(static_cast<char*>(to) + r * step, from.bytes[r], static_cast<size_t>(from.row_bytes));
  }
}
template <int T>
inline void load(const void* from) {
  load_rows<T>(from, kTileRowBytes);
}
template <int T>
inline void store(void* to) {
  store_rows<T>(to, kTileRowBytes);
}

inline void check_sizes(const Register& c, const Register& a, const Register& b) {
  must(&c != &a && &c != &b && &a != &b);
  must(c.row_bytes % 4 == 0 && a.row_bytes % 4 == 0);
  must(a.rows == c.rows && b.rows == a.row_bytes / 4 && b.row_bytes == c.row_bytes);
}

// Subnormal numbers count as zero, of operands and of results.
inline float flushed(float v) { return (to_bits(v) & 0x7f800000) == 0 ? from_bits(to_bits(v) & 0x80000000) : v; }

// The even inputs are summed by fused multiply-adds, the odd ones too; then both sums are added, then to C.
template <int C, int A, int B>
inline void dot_bf16() {
  Register& c = usable(C);
  const Register &a = usable(A), &b = usable(B);
  check_sizes(c, a, b);
  const int outputs = c.row_bytes / 4;
  for (int m = 0; m < c.rows; ++m) {
    float sums[2][kTileRowBytes / 4] = {};
    for (int k = 0; k < b.rows; ++k) {
      for (int i = 0; i < 2; ++i) {
        const float x = flushed(widen(a.get<BF16>(m, 2 * k + i)));
        for (int n = 0; n < outputs; ++n) {
          const float w = flushed(widen(b.get<BF16>(k, 2 * n + i)));
          sums[i][n] = flushed(__builtin_fmaf(x, w, sums[i][n]));
        }
      }
    }
    for (int n = 0; n < outputs; ++n) {
      c.set<float>(m, n, flushed(flushed(c.get<float>(m, n)) + flushed(sums[0][n] + sums[1][n])));
    }
  }
}

// Sums of 32 bits that wrap around.
template <class X, class W>
inline void dot_bytes(Register& c, const Register& a, const Register& b) {
  check_sizes(c, a, b);
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      uint32_t sum = c.get<uint32_t>(m, n);
      for (int k = 0; k < 4 * b.rows; ++k) {
        const int product = a.get<X>(m, k) * b.get<W>(k / 4, 4 * n + k % 4);
        sum += static_cast<uint32_t>(product);
      }
      c.set<uint32_t>(m, n, sum);
    }
  }
}
template <int C, int A, int B>
inline void dot_u8_i8() {
  dot_bytes<uint8_t, int8_t>(usable(C), usable(A), usable(B));
}
template <int C, int A, int B>
inline void dot_i8_u8() {
  dot_bytes<int8_t, uint8_t>(usable(C), usable(A), usable(B));
}

}  // namespace tile
}  // namespace
}  // namespace sparseinfer
