// The exact inverse of the packings: every stored unit is visited in the blob's order, then put back into row order.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "pack_streams.h"

namespace sparseinfer {
namespace {

void visit_rowgroup(const PackingHeader* h, int64_t row, int64_t rows, int64_t panel, const Cell& cell,
                    UnitSink& sink) {
  const auto* counts = section<PatternCounts>(h, h->counts) + cell.counts;
  const uint8_t* offsets = section<uint8_t>(h, h->offsets) + cell.offsets;
  const uint32_t* values = section<uint32_t>(h, h->values) + cell.values;
  for (int64_t g = 0; g < rows; g += kGroupRows, ++counts) {
    for (int p = 1; p < kPatterns; ++p) {
      for (int i = 0; i < counts->of[p]; ++i, ++offsets) {
        for (int r = 0; r < kGroupRows; ++r) {
          if (p >> r & 1) sink.unit(row + g + r, panel * h->panel + *offsets, values++);
        }
      }
    }
  }
}

void visit_rowlist(const PackingHeader* h, int64_t row, int64_t panel, const Cell* cell, UnitSink& sink) {
  const Run* run = section<Run>(h, h->counts) + cell->counts;
  const Run* last = section<Run>(h, h->counts) + cell[1].counts;
  const uint16_t* rows = section<uint16_t>(h, h->rows) + cell->rows;
  const uint8_t* offsets = section<uint8_t>(h, h->offsets) + cell->offsets;
  const uint32_t* values = section<uint32_t>(h, h->values) + cell->values;
  for (; run < last; ++run) {
    for (int r = 0; r < run->rows; ++r, ++rows) {
      for (int i = 0; i < run->length; ++i) sink.unit(row + *rows, panel * h->panel + *offsets++, values++);
    }
  }
}

void visit_bsr(const PackingHeader* h, int64_t row, int64_t rows, int64_t panel, const Cell& cell, UnitSink& sink) {
  const int64_t strip = strip_rows(h->block_rows), blocks_per_panel = h->panel / h->block_cols;
  const uint8_t* counts = section<uint8_t>(h, h->counts) + cell.counts;
  const uint8_t* offsets = section<uint8_t>(h, h->offsets) + cell.offsets;
  const uint32_t* values = section<uint32_t>(h, h->values) + cell.values;
  for (int64_t r = 0; r < rows; r += strip, ++counts) {
    for (int i = 0; i < *counts; ++i, values += strip * h->block_cols) {
      sink.unit(row + r, panel * blocks_per_panel + *offsets++, values);
    }
  }
}

void visit_sell(const PackingHeader* h, int64_t row, int64_t rows, const Cell& cell, UnitSink& sink) {
  const uint8_t* counts = section<uint8_t>(h, h->counts) + cell.counts;
  const uint16_t* masks = section<uint16_t>(h, h->rows) + cell.rows;
  const uint8_t* offsets = section<uint8_t>(h, h->offsets) + cell.offsets;
  const uint32_t* values = section<uint32_t>(h, h->values) + cell.values;
  for (int64_t slice = 0; slice < rows; slice += kSliceRows) {
    for (int64_t first = 0; first < h->panel; first += kChunkUnits, ++counts) {
      for (int step = 0; step < *counts; ++step, ++masks, offsets += kSliceRows, values += kSliceRows) {
        for (int64_t r = 0; r < kSliceRows; ++r) {
          if (*masks >> r & 1) sink.unit(row + slice + r, first + offsets[r], values + r);
        }
      }
    }
  }
}

struct Counter final : UnitSink {
  int64_t* per_row;
  void unit(int64_t row, int64_t, const uint32_t*) override { ++per_row[row]; }
};

struct CsrWriter final : UnitSink {
  int64_t* next;  // [n] where the row's next value goes
  int32_t* col;
  uint32_t* values;
  void unit(int64_t row, int64_t unit, const uint32_t* payload) override {
    col[next[row]] = static_cast<int32_t>(unit);
    values[next[row]++] = *payload;
  }
};

// Strips of one block arrive one by one; the first sets the column.
struct BsrWriter final : UnitSink {
  const PackingHeader* h;
  std::vector<int64_t> next;  // [strips] which block of its row comes next
  const int64_t* crow;
  int32_t* col;
  uint32_t* values;
  void unit(int64_t row, int64_t block_col, const uint32_t* payload) override {
    const int64_t strip = strip_rows(h->block_rows), block_row = row / h->block_rows, in_block = row % h->block_rows;
    const int64_t block = crow[block_row] + next[static_cast<size_t>(row / strip)]++;
    col[block] = static_cast<int32_t>(block_col);
    uint32_t* out = values + block * h->block_rows * h->block_cols + in_block * h->block_cols;
    for (int64_t c = 0; c < h->block_cols; ++c) {
      for (int64_t r = 0; r < strip; ++r) out[r * h->block_cols + c] = *payload++;
    }
  }
};

// Panels arrive ascending but a panel's units in kernel order: sorts each row by column.
void sort_rows(int64_t n, const int64_t* crow, int32_t* col, uint32_t* values) {
  std::vector<std::pair<int32_t, uint32_t>> row;
  for (int64_t r = 0; r < n; ++r) {
    if (std::is_sorted(col + crow[r], col + crow[r + 1])) continue;
    row.clear();
    for (int64_t i = crow[r]; i < crow[r + 1]; ++i) row.emplace_back(col[i], values[i]);
    std::sort(row.begin(), row.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < row.size(); ++i) {
      col[crow[r] + static_cast<int64_t>(i)] = row[i].first;
      values[crow[r] + static_cast<int64_t>(i)] = row[i].second;
    }
  }
}

}  // namespace

void visit_split(const PackingHeader* h, int64_t split, UnitSink& sink) {
  const int64_t* split_rows = section<int64_t>(h, h->split_rows);
  const int64_t row = split_rows[split], rows = split_rows[split + 1] - row;
  for (int64_t panel = 0; panel < h->panels; ++panel) {
    const Cell* cell = section<Cell>(h, h->cells) + split * h->panels + panel;
    if (h->kind == PackingKind::kRowgroup) visit_rowgroup(h, row, rows, panel, *cell, sink);
    if (h->kind == PackingKind::kRowlist) visit_rowlist(h, row, panel, cell, sink);
    if (h->kind == PackingKind::kSell) visit_sell(h, row, rows, *cell, sink);
    if (h->kind == PackingKind::kBsr) visit_bsr(h, row, rows, panel, *cell, sink);
  }
}

void unpack(const PackingHeader* h, int64_t* crow, int32_t* col, void* values) {
  auto* payloads = static_cast<uint32_t*>(values);
  if (h->kind == PackingKind::kCsr) {
    std::memcpy(crow, section<int64_t>(h, h->counts), static_cast<size_t>(h->n + 1) * 8);
    std::memcpy(col, section<int32_t>(h, h->offsets), static_cast<size_t>(h->nnz) * 4);
    std::memcpy(payloads, section<uint32_t>(h, h->values), static_cast<size_t>(h->nnz) * 4);
    return;
  }
  std::vector<int64_t> per_row(static_cast<size_t>(h->n), 0);
  Counter counter;
  counter.per_row = per_row.data();
  for (int64_t s = 0; s < h->splits; ++s) visit_split(h, s, counter);

  const int64_t rows = h->n / h->block_rows;
  crow[0] = 0;
  for (int64_t r = 0; r < rows; ++r) crow[r + 1] = crow[r] + per_row[static_cast<size_t>(r * h->block_rows)];
  if (h->kind == PackingKind::kBsr) {
    const int64_t strip = strip_rows(h->block_rows);
    for (int64_t row = 0; row < h->n; row += strip) {
      if (per_row[static_cast<size_t>(row)] != per_row[static_cast<size_t>(row / h->block_rows * h->block_rows)]) {
        throw std::invalid_argument("packed: expected the same blocks in every strip of a block row");
      }
    }
    BsrWriter writer;
    writer.h = h;
    writer.next.assign(static_cast<size_t>(h->n / strip_rows(h->block_rows)), 0);
    writer.crow = crow;
    writer.col = col;
    writer.values = payloads;
    for (int64_t s = 0; s < h->splits; ++s) visit_split(h, s, writer);
    return;
  }
  std::vector<int64_t> next(crow, crow + h->n);
  CsrWriter writer;
  writer.next = next.data();
  writer.col = col;
  writer.values = payloads;
  for (int64_t s = 0; s < h->splits; ++s) visit_split(h, s, writer);
  sort_rows(h->n, crow, col, payloads);
}

}  // namespace sparseinfer
