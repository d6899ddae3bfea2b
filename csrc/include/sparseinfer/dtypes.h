// Storage types and activations, as numbers shared by the packings, the kernels and the bindings.
#pragma once

#include <stdint.h>

namespace sparseinfer {

enum class DType : uint32_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

// How a packing holds its weights, and the arithmetic that follows from it. All sums are fp32.
enum class Storage : uint32_t {
  kF32 = 0,    // fp32, whatever the weight's dtype was; x in any dtype is widened to fp32
  kBF16 = 1,   // bf16 in pairs of columns for a bf16 dot product; x is bf16 too
  kWBF16 = 2,  // bf16, widened when it is read; x in any dtype is widened to fp32
  kWF16 = 3,   // fp16, likewise
};

// Applied to y in the epilogue of a kernel, after the bias.
enum class Activation : uint32_t { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

constexpr int kNumDTypes = 3;
constexpr int kNumStorages = 4;
constexpr int kNumActivations = 5;
extern const char* const kDTypeNames[kNumDTypes];            // "f32", "bf16", "f16"
extern const char* const kStorageNames[kNumStorages];        // "f32", "bf16", "wbf16", "wf16"
extern const char* const kActivationNames[kNumActivations];  // "none", "relu", ...

static inline int64_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
static inline int64_t payload_bytes(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

// Columns that one multiply consumes.
static inline int64_t columns_per_step(Storage storage) { return storage == Storage::kBF16 ? 2 : 1; }

// Whether a weight of this dtype is held exactly.
static inline bool storage_holds(Storage storage, DType dtype) {
  switch (storage) {
    case Storage::kBF16:
    case Storage::kWBF16:
      return dtype == DType::kBF16;
    case Storage::kWF16:
      return dtype == DType::kF16;
    case Storage::kF32:
      break;
  }
  return true;
}

}  // namespace sparseinfer
