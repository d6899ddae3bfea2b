// Reads a csr packing on the device; sparseinfer/gpu_packings.h describes its layout.
#pragma once

#include "cuda/common.cuh"

namespace sparseinfer {
namespace gpu {

struct Lists {
  const uint8_t* order;    // [n]
  const uint32_t* starts;  // [panels * n + 1]
  const char* columns;     // of vector v: 16 or 8 bytes at v * 2 * kPerVector<T>
  const uint4* values;     // [vectors]
  int n, k, panels;

  static Lists of(const Args& a) {
    return {section<uint8_t>(a.blob, a.w.order),
            section<uint32_t>(a.blob, a.w.starts),
            section<char>(a.blob, a.w.columns),
            section<uint4>(a.blob, a.w.values),
            static_cast<int>(a.w.n),
            static_cast<int>(a.w.k),
            static_cast<int>(a.w.panels)};
  }

  // Row of W at a position.
  __device__ __forceinline__ int row(int position) const {
    return position / kWindowRows * kWindowRows + order[position];
  }
  __device__ __forceinline__ int panel_width(int panel) const { return min(kPanelColumns, k - panel * kPanelColumns); }
};

// The units of one vector: values, and byte offsets of columns, two to a word.
template <class T>
struct Vector {
  uint4 values;
  uint32_t columns[kPerVector<T> / 2];

  __device__ __forceinline__ void load(const Lists& w, uint32_t v) {
    values = __ldg(w.values + v);
    const char* at = w.columns + size_t{v} * (2 * kPerVector<T>);
    if constexpr (kPerVector<T> == 4) {
      const uint2 c = __ldg(reinterpret_cast<const uint2*>(at));
      columns[0] = c.x, columns[1] = c.y;
    } else {
      const uint4 c = __ldg(reinterpret_cast<const uint4*>(at));
      columns[0] = c.x, columns[1] = c.y, columns[2] = c.z, columns[3] = c.w;
    }
  }
  // i is a constant after unrolling.
  __device__ __forceinline__ uint32_t column(int i) const {
    return i % 2 == 0 ? columns[i / 2] & 0xffffu : columns[i / 2] >> 16;
  }
};

}  // namespace gpu
}  // namespace sparseinfer
