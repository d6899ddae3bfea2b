// Converts CSR or BSR to a packing and back. All functions check their input and throw std::invalid_argument.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "sparseinfer/cpu_features.h"
#include "sparseinfer/packings.h"

namespace sparseinfer {

// CSR, or BSR when block_rows * block_cols > 1. Pointers are not owned.
struct SparseView {
  int64_t n, k, nnz;  // nnz: stored values, blocks count block_rows * block_cols each
  int64_t block_rows, block_cols;
  const int64_t* crow;  // [n / block_rows + 1]
  const int32_t* col;   // [stored blocks], block columns, ascending in a row
  const void* values;   // [stored blocks][block_rows][block_cols]
  DType dtype;
  const float* scales;  // [n] of int8, finite and not negative; else nullptr
};

// 64-byte aligned bytes.
class Blob {
 public:
  explicit Blob(int64_t bytes);
  ~Blob();
  Blob(Blob&&) noexcept;
  Blob(const Blob&) = delete;
  char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  char* data_;
  int64_t size_;
};

// Throws unless offsets are monotone with the right ends and columns are in range and strictly ascending in a row.
void check_compressed(const int64_t* crow, const int32_t* col, int64_t rows, int64_t cols, int64_t stored);

// Row offsets [n + 1] of the non-zero values (NaN is one, -0.0 is not) of a dense row-major matrix [n, k], and then
// their columns and values, crow[n] of each.
void dense_row_offsets(const void* dense, DType dtype, int64_t n, int64_t k, int64_t* crow);
void dense_to_csr(const void* dense, DType dtype, int64_t n, int64_t k, const int64_t* crow, int32_t* col,
                  void* values);

// The mask of a bitmap [n, k] with `stored` bits; packings/mask.cpp says which bit is which.
struct MaskView {
  const uint8_t* bits;
  int64_t n, k, stored;
};

// Throws unless the mask has `stored` bits, all of them inside its shape; so do the functions below, before they write.
void check_mask(const MaskView& mask);

// The positions of its bits as CSR: crow [n + 1], col [stored].
void mask_to_csr(const MaskView& mask, int64_t* crow, int32_t* col);

// Values of so many bytes each: those under the mask of a dense matrix [n, k], row by row, and the way back, zeros
// elsewhere.
void gather_by_mask(const MaskView& mask, int64_t bytes, const void* dense, void* values);
void scatter_by_mask(const MaskView& mask, int64_t bytes, const void* values, void* dense);

// The format that a packing is made from: "csr" or "bsr".
const char* packing_format(PackingKind kind);

// What the number of rows, and of columns, of a block has to be a multiple of.
int64_t block_rows(PackingKind kind);
int64_t block_columns(PackingKind kind, Storage storage);

// Whether its columns are cut into panels, whose width may be chosen.
bool has_panels(PackingKind kind);

struct PackOptions {
  Storage storage = Storage::kF32;
  Isa isa = Isa::kScalar;  // the level whose kernels will read the packing: some layouts suit one level best
  int64_t max_splits = 64;
  int64_t panel = 0;  // 0: the packing's own default
};
Blob pack(PackingKind kind, const SparseView& w, const PackOptions& options);

// Throws unless every size and index in the blob is one that `pack` could have written: afterwards a kernel that
// reads the blob stays inside it and inside x and y.
const PackingHeader* check_packing(const void* data, int64_t bytes);
const PackingHeader* check_header(const void* data, int64_t bytes);

// Exact inverse of `pack`. `crow` [n / block_rows + 1], `col` and `values` sized by the header's nnz; `scales` [n] of
// int8, else nullptr.
void unpack(const PackingHeader* w, int64_t* crow, int32_t* col, void* values, float* scales);

}  // namespace sparseinfer
