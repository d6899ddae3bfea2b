// The loops of one level that show how fast this machine is (sparseinfer/probe_loop.h): included by table-inl.h after
// the level's simd header. Sums depend on their earlier values and on values from memory, so that no compiler can leave
// steps out; there are enough of them to hide the latency of two units.
#pragma once

#include "sparseinfer/probe_loop.h"

namespace sparseinfer {
namespace {

constexpr int kProbeSums = Level::kRegisters >= 32 ? 16 : 12;

void probe_clock(int64_t iterations, const float* memory, float* result) {
  uint64_t x, y;
  memcpy(&x, memory, sizeof x);
  memcpy(&y, memory + 2, sizeof y);
  for (; iterations > 0; --iterations) {
    for (int i = 0; i < 8; ++i) x = (x >> 1) + y;
  }
  memcpy(result, &x, sizeof x);
}

void probe_fma(int64_t iterations, const float* memory, float* result) {
  using Row = Level::Row;
  const Row::V a = Row::load(memory), b = Row::load(memory + Row::L);
  Row::V sums[kProbeSums];
  SI_UNROLL
  for (int i = 0; i < kProbeSums; ++i) sums[i] = Row::load(memory + i * Row::L);
  for (; iterations > 0; --iterations) {
    SI_UNROLL
    for (int i = 0; i < kProbeSums; ++i) sums[i] = Row::fma(sums[i], a, b);
  }
  SI_UNROLL
  for (int i = 0; i < kProbeSums; ++i) Row::store(result + i * Row::L, sums[i]);
}

[[maybe_unused]] void probe_dot(int64_t iterations, const float* memory, float* result) {
  using Row = Level::Row;
  const Row::P x = Row::load_pairs(reinterpret_cast<const uint16_t*>(memory)),
               w = Row::load_pairs(reinterpret_cast<const uint16_t*>(memory + Row::L));
  Row::V sums[kProbeSums];
  SI_UNROLL
  for (int i = 0; i < kProbeSums; ++i) sums[i] = Row::load(memory + i * Row::L);
  for (; iterations > 0; --iterations) {
    SI_UNROLL
    for (int i = 0; i < kProbeSums; ++i) sums[i] = Row::dot(sums[i], x, w);
  }
  SI_UNROLL
  for (int i = 0; i < kProbeSums; ++i) Row::store(result + i * Row::L, sums[i]);
}

#if defined(__AVX512VNNI__)
void probe_vnni(int64_t iterations, const float* memory, float* result) {
  const __m512i x = _mm512_loadu_si512(memory), w = _mm512_loadu_si512(memory + 16);
  __m512i sums[kProbeSums];
  SI_UNROLL
  for (int i = 0; i < kProbeSums; ++i) sums[i] = _mm512_loadu_si512(memory + 16 * i);
  for (; iterations > 0; --iterations) {
    SI_UNROLL
    for (int i = 0; i < kProbeSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, w);
  }
  SI_UNROLL
  for (int i = 0; i < kProbeSums; ++i) _mm512_storeu_si512(result + 16 * i, sums[i]);
}
#endif

#if defined(SI_TILES)
// Four tiles of sums, as in kernels.
template <class Product>
SI_INLINE void probe_tiles(int64_t iterations, const float* memory, float* result, Product product) {
  tile::load_config(tile_config(kTileRows));
  tile::load<kTileX>(memory), tile::load<kTileX + 1>(memory);
  tile::load<kTileWeights>(memory), tile::load<kTileWeights + 1>(memory);
  tile::zero<0>(), tile::zero<1>(), tile::zero<2>(), tile::zero<3>();
  for (; iterations > 0; --iterations) product();
  tile::store<0>(result);
  tile::release();
}

void probe_tile_bf16(int64_t iterations, const float* memory, float* result) {
  probe_tiles(iterations, memory, result, [] {
    tile::dot_bf16<0, kTileX, kTileWeights>(), tile::dot_bf16<1, kTileX, kTileWeights + 1>();
    tile::dot_bf16<2, kTileX + 1, kTileWeights>(), tile::dot_bf16<3, kTileX + 1, kTileWeights + 1>();
  });
}

void probe_tile_int8(int64_t iterations, const float* memory, float* result) {
  probe_tiles(iterations, memory, result, [] {
    tile::dot_u8_i8<0, kTileX, kTileWeights>(), tile::dot_u8_i8<1, kTileX, kTileWeights + 1>();
    tile::dot_u8_i8<2, kTileX + 1, kTileWeights>(), tile::dot_u8_i8<3, kTileX + 1, kTileWeights + 1>();
  });
}
#endif

constexpr int kProbeReads = 8;  // vectors of an iteration

void probe_read(int64_t iterations, const float* memory, float* result) {
  using Row = Level::Row;
  Row::V sums[kProbeReads];
  SI_UNROLL
  for (int i = 0; i < kProbeReads; ++i) sums[i] = Row::zero();
  for (; iterations > 0; --iterations, memory += kProbeReads * Row::L) {
    SI_UNROLL
    for (int i = 0; i < kProbeReads; ++i) sums[i] = Row::add(sums[i], Row::load(memory + i * Row::L));
  }
  SI_UNROLL
  for (int i = 0; i < kProbeReads; ++i) Row::store(result + i * Row::L, sums[i]);
}

}  // namespace
}  // namespace sparseinfer
