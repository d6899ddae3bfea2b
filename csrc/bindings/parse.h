// Converts names, numbers and addresses from Python to the types of csrc. Throws std::invalid_argument for bad values.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "sparseinfer/dtypes.h"

namespace sparseinfer {
namespace bindings {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Enum, int N>
Enum parse(const std::string& name, const char* const (&names)[N], const char* what) {
  std::string valid;
  for (int i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    valid += (i ? ", " : "") + std::string(names[i]);
  }
  throw std::invalid_argument(std::string(what) + ": expected one of " + valid + ", got " + name);
}

// The numbers of the dtypes of x and of a bias and of an activation.
inline void check_numbers(int64_t dtype, int64_t bias_dtype, int64_t activation) {
  if (dtype < 0 || dtype >= kNumDTypes) throw std::invalid_argument("x: expected the number of a dtype");
  if (bias_dtype != 0 && bias_dtype != dtype) throw std::invalid_argument("bias: expected fp32 or the dtype of x");
  if (activation < 0 || activation >= kNumActivations) {
    throw std::invalid_argument("activation: expected the number of an activation");
  }
}

// x and y as they were packed: k in_features and n out_features.
inline void check_in_features(int64_t packed, int64_t k) {
  if (k == packed) return;
  throw std::invalid_argument("x: expected " + std::to_string(packed) + " in_features in the last dimension, got " +
                              std::to_string(k));
}
inline void check_out_features(int64_t packed, int64_t n) {
  if (n == packed) return;
  throw std::invalid_argument("n: expected " + std::to_string(packed) + " out_features as packed, got " +
                              std::to_string(n));
}

}  // namespace bindings
}  // namespace sparseinfer
