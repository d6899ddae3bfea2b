// The GPU packing `csr`: lists of units for each panel and row, rows sorted by length within windows (gpu_packings.h).
#include <algorithm>
#include <cstring>
#include <vector>

#include "packings/gpu/packing.h"

namespace sparseinfer {
namespace gpu {
namespace {

void lay_out(Header& h, SectionPlaces& places) {
  if (h.block != 1) refuse("block 1 of csr", h.block);
  const int64_t per_vector = values_per_vector(dtype_bytes(h.dtype));
  h.panels = panel_count(h.k);
  if (h.panels * h.n >= kMaxSize) refuse("at most 2^31 lists", h.panels * h.n);
  h.order = places.add(h.n);
  h.starts = places.add((h.panels * h.n + 1) * 4);
  h.columns = places.add(h.units * per_vector * 2);
  h.values = places.add(h.units * kVectorBytes);
}

// Positions of a window are a permutation of its rows; every list is ascending, of real columns, then filling.
void check(const Header& h) {
  const auto* order = section<uint8_t>(&h, h.order);
  for (int64_t window = 0; window < h.n; window += kWindowRows) {
    const int64_t rows = std::min<int64_t>(kWindowRows, h.n - window);
    uint64_t seen = 0;
    for (int64_t p = window; p < window + rows; ++p) {
      require(order[p] < rows, "rows within their window");
      seen |= uint64_t{1} << order[p];
    }
    require(seen == (rows == 64 ? ~uint64_t{0} : (uint64_t{1} << rows) - 1), "each row of a window once");
  }
  const auto* starts = section<uint32_t>(&h, h.starts);
  const auto* columns = section<uint16_t>(&h, h.columns);
  const int per_vector = values_per_vector(dtype_bytes(h.dtype));
  require(starts[0] == 0, "lists that start at 0");
  int64_t stored = 0;
  for (int64_t list = 0; list < h.panels * h.n; ++list) {
    require(starts[list] <= starts[list + 1] && starts[list + 1] <= h.units, "ascending starts of lists");
    const int64_t first = list / h.n * kPanelColumns, width = std::min<int64_t>(kPanelColumns, h.k - first);
    int previous = -1;
    for (int64_t i = int64_t{starts[list]} * per_vector; i < int64_t{starts[list + 1]} * per_vector; ++i) {
      const int c = x_column(columns[i]);
      require(c <= kPanelColumns && columns[i] == x_column_offset(c), "positions of columns");
      require(c == kPanelColumns || (c < width && c > previous), "ascending columns within the panel");
      previous = c;
      stored += c < kPanelColumns;
    }
  }
  require(starts[h.panels * h.n] == h.units, "lists that end with the last vector");
  require(stored == h.nnz, "as many values as the header says");
}

void unpack_lists(const Header& h, int64_t* crow, int32_t* col, char* values) {
  const auto* order = section<uint8_t>(&h, h.order);
  const auto* starts = section<uint32_t>(&h, h.starts);
  const auto* columns = section<uint16_t>(&h, h.columns);
  const char* stored = section<char>(&h, h.values);
  const int64_t bytes = dtype_bytes(h.dtype), per_vector = values_per_vector(bytes);
  std::vector<int64_t> position(static_cast<size_t>(h.n));
  for (int64_t p = 0; p < h.n; ++p) {
    position[static_cast<size_t>(p / kWindowRows * kWindowRows + order[p])] = p;
  }
  int64_t at = 0;
  crow[0] = 0;
  for (int64_t row = 0; row < h.n; ++row) {
    for (int64_t panel = 0; panel < h.panels; ++panel) {
      const int64_t list = panel * h.n + position[static_cast<size_t>(row)];
      for (int64_t i = starts[list] * per_vector; i < starts[list + 1] * per_vector; ++i) {
        const int c = x_column(columns[i]);
        if (c == kPanelColumns) break;
        col[at] = static_cast<int32_t>(panel * kPanelColumns + c);
        std::memcpy(values + at * bytes, stored + i * bytes, static_cast<size_t>(bytes));
        ++at;
      }
    }
    crow[row + 1] = at;
  }
}

}  // namespace

constexpr Packing csr_packing{lay_out, check, unpack_lists};

}  // namespace gpu
}  // namespace sparseinfer
