// Iterates over and checks cells, each one split x one panel (see packings.h), for all packings that consist of cells.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "sparseinfer/packings.h"

namespace sparseinfer {

// Throws unless `holds`: the packing is damaged, and `what` says where.
void require(bool holds, const char* what);

// Requires that [offset, offset + count * size) lies inside the blob, aligned.
void check_section(const PackingHeader& h, int64_t offset, int64_t count, int64_t size, const char* what);

// Requires splits that begin at multiples of so many rows and together hold all of them.
void check_split_rows(const PackingHeader& h, int64_t multiple);

// The streams of one cell, taken piece by piece: every piece must lie before the next cell's start. Each `take` returns
// where its piece starts in the section.
class CellReader {
 public:
  CellReader(const PackingHeader& h, int64_t cell)
      : at_(section<Cell>(&h, h.cells)[cell]), end_(section<Cell>(&h, h.cells)[cell + 1]) {}
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

// Requires that offsets [start, start + count) are below `limit` or equal to `filling`; returns how many are the
// latter.
template <class T>
int64_t check_offsets(const PackingHeader& h, int64_t start, int64_t count, int64_t limit, int64_t filling = -1) {
  const T* offsets = section<T>(&h, h.offsets) + start;
  int64_t fillings = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_filling = offsets[i] == filling;
    require(offsets[i] < limit || is_filling, "offsets");
    fillings += is_filling;
  }
  return fillings;
}

// Rows [row, row + rows) and a panel: which part of W a cell is, and where its streams start; cell[1] is where they
// end.
struct CellPlace {
  int64_t row, rows, panel;
  const Cell* cell;
};

// Calls f with the CellPlace of every cell, in the order in which they are stored.
template <class F>
void for_cells(const PackingHeader& h, F f) {
  const int64_t* split_rows = section<int64_t>(&h, h.split_rows);
  const Cell* cell = section<Cell>(&h, h.cells);
  for (int64_t split = 0; split < h.splits; ++split) {
    const int64_t row = split_rows[split], rows = split_rows[split + 1] - row;
    for (int64_t panel = 0; panel < h.panels; ++panel, ++cell) f(CellPlace{row, rows, panel, cell});
  }
}

// Takes every stored unit of W, in any order within a row: first it counts them, then it writes them as csr.
template <class Payload>
class RowSink {
 public:
  explicit RowSink(int64_t n) : next_(static_cast<size_t>(n), 0) {}

  void unit(int64_t row, int64_t column, const Payload* payload) {
    const int64_t at = next_[static_cast<size_t>(row)]++;
    if (!writing_) return;
    col_[at] = static_cast<int32_t>(column);
    values_[at] = *payload;
  }

  // Ends counting: fills crow [n + 1], and takes the same units again, for col and values.
  void write_to(int64_t* crow, int32_t* col, Payload* values) {
    crow[0] = 0;
    for (size_t row = 0; row < next_.size(); ++row) crow[row + 1] = crow[row] + next_[row];
    std::copy(crow, crow + next_.size(), next_.begin());
    writing_ = true;
    crow_ = crow;
    col_ = col;
    values_ = values;
  }

  // Sorts each row by column: panels arrive ascending, but units of a panel in the order of the kernel.
  void sort() {
    std::vector<std::pair<int32_t, Payload>> units;
    for (size_t row = 0; row < next_.size(); ++row) {
      const int64_t begin = crow_[row], end = crow_[row + 1];
      if (std::is_sorted(col_ + begin, col_ + end)) continue;
      units.clear();
      for (int64_t i = begin; i < end; ++i) units.emplace_back(col_[i], values_[i]);
      std::sort(units.begin(), units.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      for (int64_t i = begin; i < end; ++i) {
        col_[i] = units[static_cast<size_t>(i - begin)].first;
        values_[i] = units[static_cast<size_t>(i - begin)].second;
      }
    }
  }

 private:
  std::vector<int64_t> next_;  // [n] units seen, then where the next one goes
  bool writing_ = false;
  const int64_t* crow_ = nullptr;
  int32_t* col_ = nullptr;
  Payload* values_ = nullptr;
};

}  // namespace sparseinfer
