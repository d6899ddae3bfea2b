// The exact inverse of the packings: every stored unit is visited in the blob's order, then put back into row order.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "sparseinfer/halves.h"
#include "sparseinfer/pack.h"

namespace sparseinfer {
namespace {

// Receives every stored unit of a blob, in the blob's order: unit(row, column, payload). For bsr a unit is a strip of a
// block: `row` its first row, `column` the block column, and the payloads are [columns][strip rows] in the order that
// pack_bsr writes.
template <class Payload, class Sink>
void visit_rowgroup(const PackingHeader* h, int64_t row, int64_t rows, int64_t panel, const Cell& cell, Sink& sink) {
  const auto* counts = section<PatternCounts>(h, h->counts) + cell.counts;
  const uint16_t* offsets = section<uint16_t>(h, h->offsets) + cell.offsets;
  const Payload* values = section<Payload>(h, h->values) + cell.values;
  const int64_t pair = columns_per_step(h->storage);
  for (int64_t g = 0; g < rows; g += kGroupRows, ++counts) {
    for (int p = 1; p < kPatterns; ++p) {
      const int64_t units = counts->of[p] * rowgroup_step(h->storage, __builtin_popcount(static_cast<unsigned>(p)));
      for (int64_t i = 0; i < units; i += pair, offsets += pair) {
        for (int r = 0; r < kGroupRows; ++r) {
          if (!(p >> r & 1)) continue;
          for (int64_t u = 0; u < pair; ++u, ++values) {
            if (offsets[u] != h->panel) sink.unit(row + g + r, panel * h->panel + offsets[u], values);
          }
        }
      }
    }
  }
}

template <class Payload, class Sink>
void visit_rowlist(const PackingHeader* h, int64_t row, int64_t panel, const Cell* cell, Sink& sink) {
  const Run* run = section<Run>(h, h->counts) + cell->counts;
  const Run* last = section<Run>(h, h->counts) + cell[1].counts;
  const uint16_t* rows = section<uint16_t>(h, h->rows) + cell->rows;
  const uint16_t* offsets = section<uint16_t>(h, h->offsets) + cell->offsets;
  const Payload* values = section<Payload>(h, h->values) + cell->values;
  for (; run < last; ++run) {
    for (int r = 0; r < run->rows; ++r, ++rows) {
      for (int i = 0; i < run->length; ++i, ++offsets, ++values) {
        if (*offsets != h->panel) sink.unit(row + *rows, panel * h->panel + *offsets, values);
      }
    }
  }
}

template <class Payload, class Sink>
void visit_bsr(const PackingHeader* h, int64_t row, int64_t rows, int64_t panel, const Cell& cell, Sink& sink) {
  const int64_t strip = strip_rows(h->block_rows), blocks_per_panel = h->panel / h->block_cols;
  const uint8_t* counts = section<uint8_t>(h, h->counts) + cell.counts;
  const uint8_t* offsets = section<uint8_t>(h, h->offsets) + cell.offsets;
  const Payload* values = section<Payload>(h, h->values) + cell.values;
  for (int64_t r = 0; r < rows; r += strip, ++counts) {
    for (int i = 0; i < *counts; ++i, values += strip * h->block_cols) {
      sink.unit(row + r, panel * blocks_per_panel + *offsets++, values);
    }
  }
}

template <class Payload, class Sink>
void visit_sell(const PackingHeader* h, int64_t row, int64_t rows, const Cell& cell, Sink& sink) {
  const uint32_t* counts = section<uint32_t>(h, h->counts) + cell.counts;
  const uint32_t* first = section<uint32_t>(h, h->rows) + cell.rows;
  const uint8_t* offsets = section<uint8_t>(h, h->offsets) + cell.offsets;
  const Payload* values = section<Payload>(h, h->values) + cell.values;
  const int64_t per_row = columns_per_step(h->storage), slots = kSliceRows * per_row;
  for (int64_t slice = 0; slice < rows; slice += kSliceRows, ++counts) {
    for (uint32_t window = 0; window < *counts; ++window, ++first) {
      for (int64_t step = 0; step < h->steps; ++step, offsets += slots, values += slots) {
        for (int64_t i = 0; i < slots; ++i) {
          if (offsets[i] != h->window - 1) sink.unit(row + slice + i / per_row, *first + offsets[i], values + i);
        }
      }
    }
  }
}

template <class Payload, class Sink>
void visit_bitmap(const PackingHeader* h, int64_t row, int64_t rows, const Cell& cell, Sink& sink) {
  const int64_t words = mask_words(h->k);
  const uint64_t* masks = section<uint64_t>(h, h->rows) + cell.rows;
  const Payload* values = section<Payload>(h, h->values) + cell.values;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t word = 0; word < words; ++word, ++masks) {
      for (uint64_t left = *masks; left != 0; left &= left - 1) {
        sink.unit(row + r, word * kMaskColumns + __builtin_ctzll(left), values++);
      }
    }
  }
}

template <class Payload, class Sink>
void visit(const PackingHeader* h, Sink& sink) {
  const int64_t* split_rows = section<int64_t>(h, h->split_rows);
  for (int64_t split = 0; split < h->splits; ++split) {
    const int64_t row = split_rows[split], rows = split_rows[split + 1] - row;
    for (int64_t panel = 0; panel < h->panels; ++panel) {
      const Cell* cell = section<Cell>(h, h->cells) + split * h->panels + panel;
      switch (h->kind) {
        case PackingKind::kRowgroup:
          visit_rowgroup<Payload>(h, row, rows, panel, *cell, sink);
          break;
        case PackingKind::kRowlist:
          visit_rowlist<Payload>(h, row, panel, cell, sink);
          break;
        case PackingKind::kSell:
          visit_sell<Payload>(h, row, rows, *cell, sink);
          break;
        case PackingKind::kBitmap:
          visit_bitmap<Payload>(h, row, rows, *cell, sink);
          break;
        case PackingKind::kBsr:
          visit_bsr<Payload>(h, row, rows, panel, *cell, sink);
          break;
        case PackingKind::kCsr:
          break;
      }
    }
  }
}

struct Counter {
  int64_t* per_row;
  template <class Payload>
  void unit(int64_t row, int64_t, const Payload*) {
    ++per_row[row];
  }
};

template <class Payload>
struct CsrWriter {
  int64_t* next;  // [n] where the row's next value goes
  int32_t* col;
  Payload* values;
  void unit(int64_t row, int64_t column, const Payload* payload) {
    col[next[row]] = static_cast<int32_t>(column);
    values[next[row]++] = *payload;
  }
};

// Strips of one block arrive one by one; the first sets the column.
template <class Payload>
struct BsrWriter {
  const PackingHeader* h;
  std::vector<int64_t> next;  // [strips] which block of its row comes next
  const int64_t* crow;
  int32_t* col;
  Payload* values;
  void unit(int64_t row, int64_t block_col, const Payload* payload) {
    const int64_t strip = strip_rows(h->block_rows), block_row = row / h->block_rows, in_block = row % h->block_rows;
    const int64_t block = crow[block_row] + next[static_cast<size_t>(row / strip)]++;
    col[block] = static_cast<int32_t>(block_col);
    Payload* out = values + (block * h->block_rows + in_block) * h->block_cols;
    const int64_t pair = columns_per_step(h->storage);
    for (int64_t c = 0; c < h->block_cols; c += pair) {
      for (int64_t r = 0; r < strip; ++r) {
        for (int64_t p = 0; p < pair; ++p) out[r * h->block_cols + c + p] = *payload++;
      }
    }
  }
};

// Panels arrive ascending but a panel's units in kernel order: sorts each row by column.
template <class Payload>
void sort_rows(int64_t n, const int64_t* crow, int32_t* col, Payload* values) {
  std::vector<std::pair<int32_t, Payload>> row;
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

template <class Payload>
void unpack_payloads(const PackingHeader* h, int64_t* crow, int32_t* col, Payload* values) {
  if (h->kind == PackingKind::kCsr) {
    std::memcpy(crow, section<int64_t>(h, h->counts), static_cast<size_t>(h->n + 1) * 8);
    if (h->nnz == 0) return;  // col and values may be null
    std::memcpy(col, section<int32_t>(h, h->offsets), static_cast<size_t>(h->nnz) * 4);
    std::memcpy(values, section<Payload>(h, h->values), static_cast<size_t>(h->nnz) * sizeof(Payload));
    return;
  }
  std::vector<int64_t> per_row(static_cast<size_t>(h->n), 0);
  Counter counter{per_row.data()};
  visit<Payload>(h, counter);

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
    BsrWriter<Payload> writer{h, std::vector<int64_t>(static_cast<size_t>(h->n / strip), 0), crow, col, values};
    visit<Payload>(h, writer);
    return;
  }
  std::vector<int64_t> next(crow, crow + h->n);
  CsrWriter<Payload> writer{next.data(), col, values};
  visit<Payload>(h, writer);
  sort_rows(h->n, crow, col, values);
}

// The 16 bits that were widened to this float, NaN payloads too.
uint16_t narrow_back(float wide, DType dtype) {
  const uint32_t bits = to_bits(wide);
  if (dtype == DType::kBF16) return static_cast<uint16_t>(bits >> 16);
  if (wide != wide) return static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x7c00 | (bits >> 13 & 0x3ff));
  F16 half;
  narrow(wide, &half);
  return half.bits;
}

}  // namespace

void unpack(const PackingHeader* h, int64_t* crow, int32_t* col, void* values) {
  if (h->storage != Storage::kF32) return unpack_payloads(h, crow, col, static_cast<uint16_t*>(values));
  if (h->dtype == DType::kF32) return unpack_payloads(h, crow, col, static_cast<uint32_t*>(values));
  std::vector<float> wide(static_cast<size_t>(h->nnz));
  unpack_payloads(h, crow, col, reinterpret_cast<uint32_t*>(wide.data()));
  for (size_t i = 0; i < wide.size(); ++i) static_cast<uint16_t*>(values)[i] = narrow_back(wide[i], h->dtype);
}

}  // namespace sparseinfer
