// Storage types and activations, as numbers shared by the packings, the kernels and the bindings.
#pragma once

#include <stdint.h>

namespace sparseinfer {

enum class DType : uint32_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

// Applied to y in the epilogue of a kernel, after the bias.
enum class Activation : uint32_t { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

constexpr int kNumDTypes = 3;
constexpr int kNumActivations = 5;
extern const char* const kDTypeNames[kNumDTypes];            // "f32", "bf16", "f16"
extern const char* const kActivationNames[kNumActivations];  // "none", "relu", ...

static inline int64_t dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

}  // namespace sparseinfer
