// Common to all CUDA kernels: conversion of 16-bit floats from and to fp32, and the epilogue. For .cu files only.
#pragma once

#include "cuda/ptx.cuh"

namespace sparseinfer {
namespace gpu {

// Elements of T in a word of 32 bits, and in 16 bytes.
template <class T>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
template <class T>
constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ void widen(uint32_t word, float (&out)[1], float) { out[0] = __uint_as_float(word); }
__device__ __forceinline__ void widen(uint32_t word, float (&out)[2], BF16) {
  out[0] = __uint_as_float(word << 16);
  out[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void widen(uint32_t word, float (&out)[2], F16) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
  out[0] = both.x;
  out[1] = both.y;
}

// The 4 or 8 elements of 16 bytes.
template <class T>
__device__ __forceinline__ void widen(const uint4& v, float (&out)[kPerVector<T>]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float part[kPerWord<T>];
    widen(words[i], part, T{});
#pragma unroll
    for (int j = 0; j < kPerWord<T>; ++j) out[i * kPerWord<T> + j] = part[j];
  }
}

__device__ __forceinline__ void narrow(float v, float* out) { *out = v; }
__device__ __forceinline__ void narrow(float v, BF16* out) { *out = __float2bfloat16_rn(v); }
__device__ __forceinline__ void narrow(float v, F16* out) { *out = __float2half_rn(v); }

__device__ __forceinline__ uint32_t narrow_pair(float low, float high, BF16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t narrow_pair(float low, float high, F16) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float activate(float v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0.0f ? 0.0f : v;  // NaN stays NaN
    case Activation::kGelu:
      return v * normcdff(v);
    case Activation::kGeluTanh:
      return v / (1.0f + expf(-2.0f * 0.79788456f * v * fmaf(0.044715f * v, v, 1.0f)));
    case Activation::kSilu:
      return v / (1.0f + expf(-v));
    default:  // none, or one that the caller computes (kLastActivation)
      break;
  }
  return v;
}

// y [m, n] = activation(sums + bias [n]). y has dtype T, bias is fp32 if `wide_bias` and of T if not, or null.
struct Output {
  void* y;
  const void* bias;
  int64_t ldy;
  int m;
  bool wide_bias;
  Activation activation;

  static Output of(const Args& a) {
    return {a.y, a.bias, a.ldy, static_cast<int>(a.m), a.bias_dtype == DType::kF32, a.activation};
  }
};

// Of output column `column`; 0 without a bias. T is the dtype of y.
template <class T>
__device__ __forceinline__ float bias_at(const void* bias, bool wide, int column) {
  if (bias == nullptr) return 0.0f;
  if (wide) return __ldg(static_cast<const float*>(bias) + column);
  return static_cast<float>(static_cast<const T*>(bias)[column]);
}

}  // namespace gpu
}  // namespace sparseinfer
