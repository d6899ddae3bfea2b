// Numbers of dtypes, weight storages and activations, shared by packings, kernels and bindings. Numbers, names and
// counts are all derived from the lists below.
#pragma once

#include <stdint.h>

namespace sparseinfer {

// The dtypes of x, y, bias and weights: number, name, C++ type (halves.h).
#define SI_DTYPES(X)     \
  X(kF32, "f32", float)  \
  X(kBF16, "bf16", BF16) \
  X(kF16, "f16", F16)

// Those of weights alone. int8: a weight is an integer times the scale of its row.
#define SI_WEIGHT_DTYPES(X) \
  SI_DTYPES(X)              \
  X(kI8, "i8", int8_t)

// How a packing holds its weights, and the arithmetic that follows from it. Sums are fp32, but for i8.
//   f32     fp32, whatever the weight's dtype was; x in any dtype is widened to fp32
//   bf16    bf16 in pairs of columns for a bf16 dot product; x is rounded to bf16 too
//   wbf16   bf16, widened when it is read; x in any dtype is widened to fp32
//   wf16    fp16, likewise
//   i8      int8 in fours of columns for a dot product of bytes; x is rounded to 8 bits, each token by a scale of its
//           own (cpu/quantize-inl.h); sums are int32, exactly
//   wi8     int8, widened when it is read; x in any dtype is widened to fp32, or cut into parts of bf16 that add up to
//           it
#define SI_STORAGES(X) \
  X(kF32, "f32")       \
  X(kBF16, "bf16")     \
  X(kWBF16, "wbf16")   \
  X(kWF16, "wf16")     \
  X(kI8, "i8")         \
  X(kWI8, "wi8")

// Applied to y in the epilogue of a kernel, after the bias; computed in cpu/activation-inl.h and cuda/common.cuh.
#define SI_ACTIVATIONS(X)    \
  X(kNone, "none")           \
  X(kRelu, "relu")           \
  X(kGelu, "gelu")           \
  X(kGeluTanh, "gelu_tanh")  \
  X(kSilu, "silu")           \
  X(kRelu6, "relu6")         \
  X(kHardswish, "hardswish") \
  X(kSigmoid, "sigmoid")     \
  X(kHardsigmoid, "hardsigmoid")

#define SI_NUMBER(number, ...) number,
#define SI_NAME(number, name, ...) name,

enum class DType : uint32_t { SI_WEIGHT_DTYPES(SI_NUMBER) };
enum class Storage : uint32_t { SI_STORAGES(SI_NUMBER) };
enum class Activation : uint32_t { SI_ACTIVATIONS(SI_NUMBER) };

constexpr const char* kDTypeNames[] = {SI_DTYPES(SI_NAME)};
constexpr const char* kWeightDTypeNames[] = {SI_WEIGHT_DTYPES(SI_NAME)};
constexpr const char* kStorageNames[] = {SI_STORAGES(SI_NAME)};
constexpr const char* kActivationNames[] = {SI_ACTIVATIONS(SI_NAME)};
constexpr int kNumDTypes = sizeof kDTypeNames / sizeof *kDTypeNames;
constexpr int kNumWeightDTypes = sizeof kWeightDTypeNames / sizeof *kWeightDTypeNames;
constexpr int kNumStorages = sizeof kStorageNames / sizeof *kStorageNames;
constexpr int kNumActivations = sizeof kActivationNames / sizeof *kActivationNames;

static inline const char* name_of(DType dtype) { return kWeightDTypeNames[static_cast<int>(dtype)]; }
static inline const char* name_of(Storage storage) { return kStorageNames[static_cast<int>(storage)]; }

static inline int64_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kI8 ? 1 : 2; }
static inline int64_t payload_bytes(Storage storage) {
  if (storage == Storage::kI8 || storage == Storage::kWI8) return 1;
  return storage == Storage::kF32 ? 4 : 2;
}

// Columns that one multiply consumes.
static inline int64_t columns_per_step(Storage storage) {
  return storage == Storage::kI8 ? 4 : storage == Storage::kBF16 ? 2 : 1;
}

// Whether a weight of this dtype is held exactly.
static inline bool storage_holds(Storage storage, DType dtype) {
  switch (storage) {
    case Storage::kBF16:
    case Storage::kWBF16:
      return dtype == DType::kBF16;
    case Storage::kWF16:
      return dtype == DType::kF16;
    case Storage::kI8:
    case Storage::kWI8:
      return dtype == DType::kI8;
    case Storage::kF32:
      break;
  }
  return dtype != DType::kI8;
}

}  // namespace sparseinfer
