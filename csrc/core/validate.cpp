// Nothing that comes from outside is trusted: sizes and indices are checked here, before any kernel runs.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include "sparseinfer/pack.h"

namespace sparseinfer {
namespace {

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw std::invalid_argument(text);
}

using ll = long long;

void require(bool ok, const char* what) {
  if (!ok) fail("packed: expected an intact packing made by sparseinfer, got one with damaged %s", what);
}

// [offset, offset + count * size) lies inside the blob, aligned.
void check_section(const PackingHeader* h, int64_t offset, int64_t count, int64_t size, const char* what) {
  require(offset >= static_cast<int64_t>(sizeof(PackingHeader)) && offset % kPackingAlign == 0 && offset <= h->bytes,
          what);
  require(count >= 0 && count <= (h->bytes - offset) / size, what);
}

void check_split_rows(const PackingHeader* h, int64_t multiple) {
  const int64_t* rows = section<int64_t>(h, h->split_rows);
  require(rows[0] == 0 && rows[h->splits] == h->n, "row splits");
  for (int64_t s = 0; s < h->splits; ++s) {
    require(rows[s] % multiple == 0 && rows[s + 1] > rows[s] && rows[s + 1] - rows[s] <= kMaxSplitRows, "row splits");
  }
}

// Cells begin at zero and never fall, so that all of them lie before the last, which check_section bounds.
void check_cells(const PackingHeader* h) {
  const Cell* cells = section<Cell>(h, h->cells);
  require(cells->values == 0 && cells->offsets == 0 && cells->counts == 0 && cells->rows == 0, "cells");
  for (const Cell* c = cells; c < cells + h->splits * h->panels; ++c) {
    require(c->values <= c[1].values && c->offsets <= c[1].offsets && c->counts <= c[1].counts && c->rows <= c[1].rows,
            "cells");
  }
}

// The streams of one cell, taken piece by piece: every piece must lie before the next cell's start.
class CellReader {
 public:
  CellReader(const PackingHeader* h, int64_t cell)
      : at_(section<Cell>(h, h->cells)[cell]), end_(section<Cell>(h, h->cells)[cell + 1]) {}
  int64_t take_offsets(int64_t count) { return take(at_.offsets, end_.offsets, count); }
  int64_t take_values(int64_t count) { return take(at_.values, end_.values, count); }
  int64_t take_counts(int64_t count) { return take(at_.counts, end_.counts, count); }
  int64_t take_rows(int64_t count) { return take(at_.rows, end_.rows, count); }
  bool has_counts() const { return at_.counts < end_.counts; }
  void finish() const {
    require(
        at_.values == end_.values && at_.offsets == end_.offsets && at_.counts == end_.counts && at_.rows == end_.rows,
        "cells");
  }

 private:
  static int64_t take(int64_t& at, int64_t end, int64_t count) {
    require(count >= 0 && count <= end - at, "counts");
    const int64_t start = at;
    at += count;
    return start;
  }
  Cell at_, end_;
};

// Offsets [start, start + count) are below `limit`, or equal to `filling`; returns how many are the latter.
template <class T>
int64_t check_offsets(const PackingHeader* h, int64_t start, int64_t count, int64_t limit, int64_t filling = -1) {
  const T* offsets = section<T>(h, h->offsets) + start;
  int64_t filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_filling = offsets[i] == filling;
    require(offsets[i] < limit || is_filling, "offsets");
    filled += is_filling;
  }
  return filled;
}

// Each returns the number of values that the cell stores, fillings left out.
int64_t check_rowgroup_cell(const PackingHeader* h, int64_t rows, int64_t width, CellReader& cell) {
  int64_t stored = 0;
  for (int64_t group = 0; group < (rows + kGroupRows - 1) / kGroupRows; ++group) {
    const PatternCounts& counts = section<PatternCounts>(h, h->counts)[cell.take_counts(1)];
    const int64_t rows_left = rows - group * kGroupRows;
    for (int p = 1; p < kPatterns; ++p) {
      require(rows_left >= kGroupRows || p >> rows_left == 0 || counts.of[p] == 0, "counts");
      const int pattern_rows = __builtin_popcount(static_cast<unsigned>(p));
      const int64_t units = counts.of[p] * rowgroup_step(h->storage, pattern_rows);
      const int64_t filled = check_offsets<uint16_t>(h, cell.take_offsets(units), units, width, h->panel);
      cell.take_values(units * pattern_rows);
      stored += (units - filled) * pattern_rows;
    }
  }
  return stored;
}

int64_t check_rowlist_cell(const PackingHeader* h, int64_t rows, int64_t width, CellReader& cell) {
  int64_t stored = 0;
  while (cell.has_counts()) {
    const Run& run = section<Run>(h, h->counts)[cell.take_counts(1)];
    require(run.length % rowlist_step(h->storage) == 0, "counts");
    const int64_t first = cell.take_rows(run.rows);
    for (int64_t i = 0; i < run.rows; ++i) require(section<uint16_t>(h, h->rows)[first + i] < rows, "rows");
    const int64_t units = int64_t{run.length} * run.rows;
    stored += units - check_offsets<uint16_t>(h, cell.take_offsets(units), units, width, h->panel);
    cell.take_values(units);
  }
  return stored;
}

int64_t check_bsr_cell(const PackingHeader* h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t strip = strip_rows(h->block_rows);
  int64_t stored = 0;
  for (int64_t i = 0; i < rows / strip; ++i) {
    const int64_t blocks = section<uint8_t>(h, h->counts)[cell.take_counts(1)];
    check_offsets<uint8_t>(h, cell.take_offsets(blocks), blocks, width / h->block_cols);
    cell.take_values(blocks * strip * h->block_cols);
    stored += blocks * strip * h->block_cols;
  }
  return stored;
}

int64_t check_sell_cell(const PackingHeader* h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t per_row = columns_per_step(h->storage), slots = h->steps * kSliceRows * per_row;
  int64_t stored = 0;
  for (int64_t slice = 0; slice < rows; slice += kSliceRows) {
    const int64_t windows = section<uint32_t>(h, h->counts)[cell.take_counts(1)];
    const uint32_t* first = section<uint32_t>(h, h->rows) + cell.take_rows(windows);
    for (int64_t window = 0; window < windows; ++window) {
      require(first[window] < width, "windows");
      const int64_t reach = width - first[window];
      const int64_t at = cell.take_offsets(slots);
      stored += slots - check_offsets<uint8_t>(h, at, slots, reach < h->window ? reach : h->window, h->window - 1);
      cell.take_values(slots);
      // Lanes past the last row hold nothing.
      const uint8_t* offsets = section<uint8_t>(h, h->offsets) + at;
      for (int64_t i = 0; rows - slice < kSliceRows && i < slots; ++i) {
        require(i / per_row % kSliceRows < rows - slice || offsets[i] == h->window - 1, "offsets");
      }
    }
  }
  return stored;
}

int64_t check_bitmap_cell(const PackingHeader* h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t words = mask_words(width);
  const uint64_t* masks = section<uint64_t>(h, h->rows) + cell.take_rows(rows * words);
  const uint64_t outside = width % kMaskColumns == 0 ? 0 : ~uint64_t{0} << (width % kMaskColumns);
  int64_t stored = 0;
  for (int64_t i = 0; i < rows * words; ++i) {
    require(i % words != words - 1 || (masks[i] & outside) == 0, "masks");
    stored += __builtin_popcountll(masks[i]);
  }
  cell.take_values(stored);
  return stored;
}

void check_csr(const PackingHeader* h) {
  check_section(h, h->counts, h->n + 1, 8, "offsets");
  check_section(h, h->offsets, h->nnz, 4, "columns");
  check_section(h, h->values, h->nnz, 4, "values");
  check_compressed(section<int64_t>(h, h->counts), section<int32_t>(h, h->offsets), h->n, h->k, h->nnz);
}

}  // namespace

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
  require(static_cast<uint32_t>(h->kind) < kNumPackings && static_cast<uint32_t>(h->dtype) < kNumDTypes &&
              static_cast<uint32_t>(h->storage) < kNumStorages && storage_holds(h->storage, h->dtype),
          "header");
  return h;
}

const PackingHeader* check_packing(const void* data, int64_t bytes) {
  const PackingHeader* h = check_header(data, bytes);
  constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max();
  require(h->n >= 0 && h->n <= kMaxDim && h->k >= 0 && h->k <= kMaxDim && h->nnz >= 0, "shape");
  require(h->splits >= 0 && h->splits <= h->n && (h->splits > 0) == (h->n > 0), "row splits");
  check_section(h, h->split_rows, h->splits + 1, 8, "row splits");
  require(h->block_rows >= 1 && h->block_cols >= 1 && h->block_rows <= kMaxDim && h->block_cols <= kMaxDim, "header");
  const bool blocks = h->kind == PackingKind::kBsr;
  require(blocks || h->block_rows * h->block_cols == 1, "header");
  if (h->kind == PackingKind::kCsr) {
    require(h->storage == Storage::kF32, "header");
    check_split_rows(h, 1);
    check_csr(h);
    return h;
  }

  const int64_t widest = h->kind == PackingKind::kSell || h->kind == PackingKind::kBitmap ? kMaxDim
                         : blocks                                                         ? 255 * h->block_cols
                                                                                          : kMaxPanel;
  require(h->panel >= 1 && h->panel <= widest, "header");
  require(h->panels == (h->k + h->panel - 1) / h->panel, "header");
  check_section(h, h->cells, h->splits * h->panels + 1, sizeof(Cell), "cells");
  check_cells(h);
  const Cell& total = section<Cell>(h, h->cells)[h->splits * h->panels];
  require(total.values >= 0 && total.values <= h->bytes, "cells");
  check_section(h, h->values, total.values * payload_bytes(h->storage) + kValuesSlack, 1, "values");

  struct Rules {
    int64_t row_multiple;  // where splits may begin
    int64_t count_bytes, row_bytes, offset_bytes;
    int64_t (*check_cell)(const PackingHeader*, int64_t, int64_t, CellReader&);
  } rules{};
  switch (h->kind) {
    case PackingKind::kRowgroup:
      rules = {kGroupRows, sizeof(PatternCounts), 1, 2, check_rowgroup_cell};
      break;
    case PackingKind::kRowlist:
      rules = {1, sizeof(Run), 2, 2, check_rowlist_cell};
      break;
    case PackingKind::kSell:
      require(h->panel == (h->k > 0 ? h->k : 1), "header");
      require(window_is_valid(h->window) && steps_is_valid(h->steps), "header");
      rules = {kSliceRows, 4, 4, 1, check_sell_cell};
      break;
    case PackingKind::kBitmap:
      require(h->panel == (h->k > 0 ? h->k : 1), "header");
      rules = {1, 1, 8, 1, check_bitmap_cell};
      break;
    default:
      require(h->n % h->block_rows == 0 && h->k % h->block_cols == 0 && h->panel % h->block_cols == 0, "header");
      require(h->block_cols % columns_per_step(h->storage) == 0, "header");
      rules = {strip_rows(h->block_rows), 1, 1, 1, check_bsr_cell};
      break;
  }
  const bool few_tokens = h->kind == PackingKind::kSell || h->kind == PackingKind::kBitmap;
  require(few_tokens || h->storage == Storage::kF32 || h->storage == Storage::kBF16, "header");
  check_section(h, h->counts, total.counts, rules.count_bytes, "counts");
  check_section(h, h->rows, total.rows, rules.row_bytes, "rows");
  check_section(h, h->offsets, total.offsets, rules.offset_bytes, "offsets");
  check_split_rows(h, rules.row_multiple);
  const int64_t* split_rows = section<int64_t>(h, h->split_rows);
  int64_t stored = 0;
  for (int64_t s = 0; s < h->splits; ++s) {
    for (int64_t p = 0; p < h->panels; ++p) {
      CellReader cell(h, s * h->panels + p);
      const int64_t left = h->k - p * h->panel;
      stored += rules.check_cell(h, split_rows[s + 1] - split_rows[s], left < h->panel ? left : h->panel, cell);
      cell.finish();
    }
  }
  require(stored == h->nnz, "values");
  return h;
}

}  // namespace sparseinfer
