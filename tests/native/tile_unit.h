// The emulated tile unit against plain arithmetic, so that what it says of the kernels holds on hardware too.
#pragma once

#if defined(SPARSEINFER_EMULATE_TILES) && defined(__x86_64__)
#include <array>
#include <cmath>

#include "cpu/amx.h"
#include "tested.h"

namespace native_tests {
namespace {

using TileBytes = std::array<unsigned char, 1024>;

template <class T>
T element(const TileBytes& tile, int row, int column) {
  T value;
  std::memcpy(&value, tile.data() + row * 64 + column * static_cast<int>(sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void put(TileBytes& tile, int row, int column, T value) {
  std::memcpy(tile.data() + row * 64 + column * static_cast<int>(sizeof(T)), &value, sizeof(T));
}

// C after one product of tiles of `tokens` rows; what lies behind them must stay as it was.
template <class Dot>
TileBytes product(int tokens, const TileBytes& c, const TileBytes& a, const TileBytes& b, Dot dot) {
  alignas(64) TileBytes memory[4] = {c, a, b, {}};
  memory[3].fill(0x5a);
  tile::load_config(tile_config(tokens));
  tile::load<0>(memory[0].data());
  tile::load<kTileX>(memory[1].data());
  tile::load<kTileWeights>(memory[2].data());
  dot();
  tile::store<0>(memory[3].data());
  tile::release();
  for (size_t i = static_cast<size_t>(tokens) * 64; i < 1024; ++i) {
    if (memory[3][i] != 0x5a) fail("tile unit: stored a row too many");
  }
  return memory[3];
}

template <class X, class W, class Dot>
void check_bytes(const char* name, Dot dot) {
  Random random(11);
  for (int tokens : {1, 7, 16}) {
    TileBytes c, a, b;
    for (TileBytes* t : {&c, &a, &b}) {
      for (unsigned char& byte : *t) byte = static_cast<unsigned char>(random.next());
    }
    const TileBytes y = product(tokens, c, a, b, dot);
    for (int m = 0; m < tokens; ++m) {
      for (int n = 0; n < 16; ++n) {
        int64_t sum = element<int32_t>(c, m, n);
        for (int k = 0; k < 64; ++k) {
          sum += static_cast<int64_t>(element<X>(a, m, k)) * element<W>(b, k / 4, n * 4 + k % 4);
        }
        if (element<uint32_t>(y, m, n) != static_cast<uint32_t>(sum)) fail(std::string("tile unit: ") + name);
      }
    }
  }
}

void dot_pairs() { tile::dot_bf16<0, kTileX, kTileWeights>(); }

// One token and one output: c + sum of a[i] * b[i], fp32 bits.
uint32_t pairs(float c, std::vector<std::pair<double, double>> factors) {
  TileBytes sums{}, a{}, b{};
  put(sums, 0, 0, c);
  for (int i = 0; i < static_cast<int>(factors.size()); ++i) {
    put(a, 0, i, static_cast<uint16_t>(encode(factors[static_cast<size_t>(i)].first, DType::kBF16)));
    put(b, i / 2, i % 2, static_cast<uint16_t>(encode(factors[static_cast<size_t>(i)].second, DType::kBF16)));
  }
  return element<uint32_t>(product(1, sums, a, b, dot_pairs), 0, 0);
}

void check_pairs() {
  Random random(5);
  TileBytes c, a, b;
  for (int i = 0; i < 256; ++i) put(c, i / 16, i % 16, static_cast<float>(random.between(-900, 900)));
  for (int i = 0; i < 512; ++i) {
    for (TileBytes* t : {&a, &b}) {
      const auto value = static_cast<double>(random.between(-200, 200));
      put(*t, i / 32, i % 32, static_cast<uint16_t>(encode(value, DType::kBF16)));
    }
  }
  for (int tokens : {1, 5, 16}) {
    const TileBytes y = product(tokens, c, a, b, dot_pairs);
    for (int m = 0; m < tokens; ++m) {
      for (int n = 0; n < 16; ++n) {
        double sum = element<float>(c, m, n);
        for (int k = 0; k < 32; ++k) {
          sum += decode(element<uint16_t>(a, m, k), DType::kBF16) *
                 decode(element<uint16_t>(b, k / 2, n * 2 + k % 2), DType::kBF16);
        }
        if (element<float>(y, m, n) != sum) fail("tile unit: integers of bf16");
      }
    }
  }
  const double tiny = 0x1p-127, small = 0x1p-70;
  const uint32_t zero = 0, one = 0x3f800000;
  // Subnormal factors, products and sums are zero.
  if (pairs(0, {{tiny, 1}}) != zero || pairs(0, {{small, small}}) != zero) fail("tile unit: subnormal numbers");
  if (pairs(static_cast<float>(tiny), {{1, 1}}) != one) fail("tile unit: a subnormal sum");
  // 2^24 + 1 is a tie, rounded to even: it loses each 1 that comes alone. Even inputs meet before odd ones.
  const double big = 0x1p24;
  if (pairs(0, {{big, 1}, {1, 1}, {1, 1}, {1, 1}}) != 0x4b800001) fail("tile unit: the order of a sum");
  if (pairs(0x1p24f, {{1, 1}, {1, 1}}) != 0x4b800001) fail("tile unit: the sum of pairs comes last");
}

void check_tile_unit() {
  check_bytes<uint8_t, int8_t>("unsigned by signed bytes", [] { tile::dot_u8_i8<0, kTileX, kTileWeights>(); });
  check_bytes<int8_t, uint8_t>("signed by unsigned bytes", [] { tile::dot_i8_u8<0, kTileX, kTileWeights>(); });
  check_pairs();
}

}  // namespace
}  // namespace native_tests
#else
namespace native_tests {
inline void check_tile_unit() {}
}  // namespace native_tests
#endif
