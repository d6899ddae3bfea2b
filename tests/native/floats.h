// The three float types and int8, converted by plain arithmetic on their fields: what the kernels do with them is
// checked against this, so none of the library's conversions is used.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "sparseinfer/dtypes.h"

namespace native_tests {

using sparseinfer::DType;

struct Fields {
  int exponent, mantissa;  // bits
};
inline Fields fields(DType dtype) {
  return dtype == DType::kF32 ? Fields{8, 23} : dtype == DType::kBF16 ? Fields{8, 7} : Fields{5, 10};
}

inline double decode_16(uint32_t bits, DType dtype) {
  const Fields f = fields(dtype);
  const int bias = (1 << (f.exponent - 1)) - 1;
  const uint32_t mantissa = bits & ((1u << f.mantissa) - 1);
  const int exponent = static_cast<int>(bits >> f.mantissa) & ((1 << f.exponent) - 1);
  double magnitude =
      std::ldexp(mantissa + (exponent > 0 ? 1u << f.mantissa : 0u), (exponent > 0 ? exponent : 1) - bias - f.mantissa);
  if (exponent == (1 << f.exponent) - 1) {
    magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return bits >> 15 ? -magnitude : magnitude;
}

inline double decode(uint32_t bits, DType dtype) {
  if (dtype == DType::kI8) return bits < 128 ? static_cast<double>(bits) : static_cast<double>(bits) - 256.0;
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  // All of them once: decoding takes most of the time under an emulator otherwise.
  static const std::vector<double> tables = [] {
    std::vector<double> list;
    for (DType d : {DType::kBF16, DType::kF16}) {
      for (uint32_t i = 0; i < 1u << 16; ++i) list.push_back(decode_16(i, d));
    }
    return list;
  }();
  return tables[bits + (dtype == DType::kF16 ? 1u << 16 : 0u)];
}

// To nearest, ties to even.
inline uint32_t encode(double value, DType dtype) {
  if (dtype == DType::kI8) return static_cast<uint32_t>(static_cast<int>(value)) & 255;
  const Fields f = fields(dtype);
  const int bias = (1 << (f.exponent - 1)) - 1;
  const uint32_t infinity = ((1u << f.exponent) - 1) << f.mantissa;
  const uint32_t sign = (std::signbit(value) ? 1u : 0u) << (f.exponent + f.mantissa);
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | infinity | ((1u << f.mantissa) - 1);  // rounding must not carry into the sign
  if (magnitude == 0.0) return sign;
  if (magnitude >= std::ldexp(1.0, bias + 1)) return sign | infinity;
  int exponent = std::ilogb(magnitude);
  if (exponent < 1 - bias) exponent = 1 - bias;
  // In units of the last place. The leading one of a normal number, and a carry out of the mantissa, add to the
  // exponent.
  const auto whole = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, f.mantissa - exponent)));
  return sign | ((static_cast<uint32_t>(exponent + bias - 1) << f.mantissa) + whole);
}

inline double rounded(double value, DType dtype) { return decode(encode(value, dtype), dtype); }

// Half a unit in the last place of 1.
inline double rounding(DType dtype) { return std::ldexp(0.5, -fields(dtype).mantissa); }

inline uint32_t get_bits(const void* values, int64_t i, DType dtype) {
  if (dtype == DType::kI8) return static_cast<const uint8_t*>(values)[i];
  return dtype == DType::kF32 ? static_cast<const uint32_t*>(values)[i] : static_cast<const uint16_t*>(values)[i];
}
inline void put_bits(void* values, int64_t i, DType dtype, uint32_t bits) {
  if (dtype == DType::kF32) {
    static_cast<uint32_t*>(values)[i] = bits;
  } else if (dtype == DType::kI8) {
    static_cast<uint8_t*>(values)[i] = static_cast<uint8_t>(bits);
  } else {
    static_cast<uint16_t*>(values)[i] = static_cast<uint16_t>(bits);
  }
}

}  // namespace native_tests
