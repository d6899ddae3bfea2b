// Checks formats and packings from Python before any kernel runs. This file checks what all packings have in common,
// each packing's own file the rest (packing.h). After both checks, a kernel that reads the blob cannot access memory
// outside of it, x and y.
#include <cstdarg>
#include <cstdio>
#include <limits>
#include <stdexcept>

#include "packings/packing.h"
#include "sparseinfer/registry.h"

namespace sparseinfer {
namespace {

using ll = long long;

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw std::invalid_argument(text);
}

// Cells begin at zero and never fall, so that all of them lie before the last, which check_section bounds.
void check_cell_starts(const PackingHeader& h) {
  const Cell* cells = section<Cell>(&h, h.cells);
  require(cells->values == 0 && cells->offsets == 0 && cells->counts == 0 && cells->rows == 0, "cells");
  for (const Cell* c = cells; c < cells + h.splits * h.panels; ++c) {
    require(c->values <= c[1].values && c->offsets <= c[1].offsets && c->counts <= c[1].counts && c->rows <= c[1].rows,
            "cells");
  }
}

}  // namespace

void require(bool holds, const char* what) {
  if (!holds) fail("packed: expected an intact packing made by sparseinfer, got one with damaged %s", what);
}

void check_section(const PackingHeader& h, int64_t offset, int64_t count, int64_t size, const char* what) {
  require(offset >= static_cast<int64_t>(sizeof(PackingHeader)) && offset % kPackingAlign == 0 && offset <= h.bytes,
          what);
  require(count >= 0 && count <= (h.bytes - offset) / size, what);
}

void check_split_rows(const PackingHeader& h, int64_t multiple) {
  const int64_t* rows = section<int64_t>(&h, h.split_rows);
  require(rows[0] == 0 && rows[h.splits] == h.n, "row splits");
  for (int64_t s = 0; s < h.splits; ++s) {
    require(rows[s] % multiple == 0 && rows[s + 1] > rows[s] && rows[s + 1] - rows[s] <= kMaxSplitRows, "row splits");
  }
}

void check_cells(const Packing& packing, const PackingHeader& h) {
  const CellPacking& kind = *packing.cells;
  require(h.panel >= 1 && (kind.widest_panel == nullptr ? h.panel == all_columns(h) : h.panel <= kind.widest_panel(h)),
          "header");
  require(h.panels == (h.k + h.panel - 1) / h.panel, "header");
  check_section(h, h.cells, h.splits * h.panels + 1, sizeof(Cell), "cells");
  check_cell_starts(h);
  const Cell& total = section<Cell>(&h, h.cells)[h.splits * h.panels];
  require(total.values >= 0 && total.values <= h.bytes, "cells");
  check_section(h, h.values, total.values * payload_bytes(h.storage) + kValuesSlack, 1, "values");
  if (kind.check_header != nullptr) kind.check_header(h);
  check_section(h, h.counts, total.counts, kind.count_bytes, "counts");
  check_section(h, h.rows, total.rows, kind.row_bytes, "rows");
  check_section(h, h.offsets, total.offsets, kind.offset_bytes, "offsets");
  check_split_rows(h, packing.row_multiple(h));

  int64_t stored = 0;
  for_cells(h, [&](const CellPlace& place) {
    CellReader cell(h, place.cell - section<Cell>(&h, h.cells));
    const int64_t left = h.k - place.panel * h.panel;
    stored += kind.check_cell(h, place.rows, left < h.panel ? left : h.panel, cell);
    cell.finish();
  });
  require(stored == h.nnz, "values");
}

void check_compressed(const int64_t* crow, const int32_t* col, int64_t rows, int64_t cols, int64_t stored) {
  if (crow[0] != 0) fail("crow_indices: expected the first entry to be 0, got %lld", static_cast<ll>(crow[0]));
  if (crow[rows] != stored) {
    fail("crow_indices: expected the last entry to be the number of stored values %lld, got %lld",
         static_cast<ll>(stored), static_cast<ll>(crow[rows]));
  }
  // Monotone first: only then is every crow[row] a position in col.
  for (int64_t row = 0; row < rows; ++row) {
    if (crow[row + 1] < crow[row]) {
      fail("crow_indices: expected a non-decreasing sequence, got %lld after %lld at row %lld",
           static_cast<ll>(crow[row + 1]), static_cast<ll>(crow[row]), static_cast<ll>(row));
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    int64_t previous = -1;
    for (int64_t i = crow[row]; i < crow[row + 1]; ++i) {
      if (col[i] < 0 || col[i] >= cols) {
        fail("col_indices: expected values in [0, %lld), got %lld in row %lld", static_cast<ll>(cols),
             static_cast<ll>(col[i]), static_cast<ll>(row));
      }
      if (col[i] <= previous) {
        fail("col_indices: expected ascending columns without repeats, got %lld after %lld in row %lld",
             static_cast<ll>(col[i]), static_cast<ll>(previous), static_cast<ll>(row));
      }
      previous = col[i];
    }
  }
}

const PackingHeader* check_header(const void* data, int64_t bytes) {
  const auto* h = static_cast<const PackingHeader*>(data);
  if (reinterpret_cast<uintptr_t>(data) % kPackingAlign != 0)
    fail("packed: expected 64-byte aligned memory (clone the tensor)");
  if (bytes < static_cast<int64_t>(sizeof(PackingHeader)) || h->magic != kPackingMagic) {
    fail("packed: expected a packing made by sparseinfer.ops.pack, got %lld other bytes", static_cast<ll>(bytes));
  }
  if (h->bytes != bytes)
    fail("packed: expected %lld bytes, got %lld", static_cast<ll>(h->bytes), static_cast<ll>(bytes));
  require(static_cast<uint32_t>(h->kind) < kNumPackings && static_cast<uint32_t>(h->dtype) < kNumWeightDTypes &&
              static_cast<uint32_t>(h->storage) < kNumStorages && storage_holds(h->storage, h->dtype),
          "header");
  return h;
}

const PackingHeader* check_packing(const void* data, int64_t bytes) {
  const PackingHeader& h = *check_header(data, bytes);
  const Packing& packing = packing_of(h.kind);
  constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max();
  require(h.n >= 0 && h.n <= kMaxDim && h.k >= 0 && h.k <= kMaxDim && h.nnz >= 0, "shape");
  require(h.splits >= 0 && h.splits <= h.n && (h.splits > 0) == (h.n > 0), "row splits");
  check_section(h, h.split_rows, h.splits + 1, 8, "row splits");
  require(h.block_rows >= 1 && h.block_cols >= 1 && h.block_rows <= kMaxDim && h.block_cols <= kMaxDim, "header");
  require(takes_blocks(h.kind) || h.block_rows * h.block_cols == 1, "header");
  require(has_kernels(h.kind, h.storage), "header");
  require((h.scales != 0) == (h.dtype == DType::kI8) && (h.row_sums != 0) == (h.storage == Storage::kI8), "header");
  if (h.scales != 0) check_section(h, h.scales, h.n, 4, "scales");
  if (h.row_sums != 0) check_section(h, h.row_sums, h.n, 4, "row sums");
  packing.check(packing, h);
  return &h;
}

}  // namespace sparseinfer
