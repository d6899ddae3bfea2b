// Converts a dense matrix to CSR: counts, then fills, each on all threads.
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "sparseinfer/pack.h"
#include "sparseinfer/parallel.h"

namespace sparseinfer {
namespace {

struct DenseJob {
  const void* dense;
  int64_t k;
  int64_t* crow;
  int32_t* col;
  void* values;
  std::atomic<bool> out_of_memory{false};
};

// Both zeros of a float have no bit but the sign; a NaN has others. One byte is an integer, -128 among them.
template <class Payload>
bool is_stored(Payload bits) {
  return sizeof(Payload) == 1 ? bits != 0 : static_cast<Payload>(bits << 1) != 0;
}

// crow[row + 1] = stored values of the row.
template <class Payload>
void count_rows(int64_t begin, int64_t end, void* ctx) {
  const auto& job = *static_cast<DenseJob*>(ctx);
  for (int64_t row = begin; row < end; ++row) {
    const Payload* from = static_cast<const Payload*>(job.dense) + row * job.k;
    int64_t count = 0;
    for (int64_t c = 0; c < job.k; ++c) count += is_stored(from[c]);
    job.crow[row + 1] = count;
  }
}

// Every element is written and the place moves on where it was one to store: no branch to mispredict. The last write
// may fall behind the row's own place, so rows that are not full go through a row of memory of their own.
template <class Payload>
void fill_rows(int64_t begin, int64_t end, void* ctx) {
  auto& job = *static_cast<DenseJob*>(ctx);
  std::vector<int32_t> col;
  std::vector<Payload> values;
  try {
    col.resize(static_cast<size_t>(job.k) + 1);
    values.resize(static_cast<size_t>(job.k) + 1);
  } catch (const std::bad_alloc&) {
    job.out_of_memory = true;
    return;
  }
  for (int64_t row = begin; row < end; ++row) {
    const Payload* from = static_cast<const Payload*>(job.dense) + row * job.k;
    size_t at = 0;
    for (int64_t c = 0; c < job.k; ++c) {
      col[at] = static_cast<int32_t>(c);
      values[at] = from[c];
      at += is_stored(from[c]);
    }
    if (at == 0) continue;
    std::memcpy(job.col + job.crow[row], col.data(), at * sizeof(int32_t));
    std::memcpy(static_cast<Payload*>(job.values) + job.crow[row], values.data(), at * sizeof(Payload));
  }
}

// Calls f with an unsigned integer as wide as a value of the dtype.
template <class F>
void with_bits(DType dtype, F f) {
  switch (dtype_bytes(dtype)) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    default:
      return f(uint32_t{});
  }
}

}  // namespace

void dense_row_offsets(const void* dense, DType dtype, int64_t n, int64_t k, int64_t* crow) {
  DenseJob job{dense, k, crow, nullptr, nullptr, {}};
  with_bits(dtype, [&](auto bits) { parallel_for(n, Spread::pool(), count_rows<decltype(bits)>, &job); });
  crow[0] = 0;
  for (int64_t row = 0; row < n; ++row) crow[row + 1] += crow[row];
}

void dense_to_csr(const void* dense, DType dtype, int64_t n, int64_t k, const int64_t* crow, int32_t* col,
                  void* values) {
  DenseJob job{dense, k, const_cast<int64_t*>(crow), col, values, {}};
  with_bits(dtype, [&](auto bits) { parallel_for(n, Spread::pool(), fill_rows<decltype(bits)>, &job); });
  if (job.out_of_memory) throw std::bad_alloc();
}

}  // namespace sparseinfer
