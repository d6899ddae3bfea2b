#include "sparseinfer/gpu_packings.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/gpu_checks.h"
#include "sparseinfer/gpu_tiles.h"

namespace sparseinfer {
namespace gpu {

const char* const kKindNames[kNumKinds] = {"csr", "bsr", "bitmap", "delta4", "delta8"};

namespace {

[[noreturn]] void refuse(const std::string& expected, int64_t got) {
  throw std::invalid_argument("packed: expected " + expected + ", got " + std::to_string(got));
}

// Exclusive: a stream, at most an eighth of a row of tiles, then has fewer than 2^32 bytes.
constexpr int64_t kMaxTiledColumns = int64_t{1} << 27;

int64_t rows_of(const Header& h) { return h.n / h.block; }

// CSR. Positions of a window are a permutation of its rows; every list is ascending, of real columns, then filling.
void check_csr(const Header& h) {
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

void check_bsr(const Header& h) {
  const auto* order = section<int32_t>(&h, h.order);
  const auto* starts = section<uint32_t>(&h, h.starts);
  const auto* columns = section<int32_t>(&h, h.columns);
  const int64_t rows = rows_of(h), width = h.k / slab_columns(h.block);
  std::vector<bool> seen(static_cast<size_t>(rows));
  int64_t stored = 0;
  require(starts[0] == 0, "block rows that start at 0");
  for (int64_t p = 0; p < rows; ++p) {
    require(order[p] >= 0 && order[p] < rows && !seen[static_cast<size_t>(order[p])], "each block row once");
    seen[static_cast<size_t>(order[p])] = true;
    require(starts[p] <= starts[p + 1] && starts[p + 1] <= h.units, "ascending starts of block rows");
    const uint32_t pieces = static_cast<uint32_t>(slabs_per_block(h.block)), count = starts[p + 1] - starts[p];
    require(count % pieces == 0 && count % static_cast<uint32_t>(slabs_per_stage(h.block)) == 0,
            "whole blocks and stages");
    for (int64_t i = starts[p]; i < starts[p + 1]; ++i) {
      const bool first = i == starts[p], filling = columns[i] == width;
      require(columns[i] >= 0 && columns[i] <= width, "columns within the matrix");
      require(first || columns[i] > columns[i - 1] || (filling && columns[i - 1] == width),
              "ascending columns within a block row");
      require(filling || columns[i] % pieces == (i - starts[p]) % pieces, "the slabs of a block together");
      stored += !filling;
    }
  }
  require(starts[rows] == h.units, "block rows that end with the last slab");
  require(stored * slab_columns(h.block) * h.block == h.nnz, "as many values as the header says");
}

void unpack_csr(const Header& h, int64_t* crow, int32_t* col, char* values) {
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

void unpack_bsr(const Header& h, int64_t* crow, int32_t* col, char* values) {
  const auto* order = section<int32_t>(&h, h.order);
  const auto* starts = section<uint32_t>(&h, h.starts);
  const auto* columns = section<int32_t>(&h, h.columns);
  const char* stored = section<char>(&h, h.values);
  const int64_t bytes = dtype_bytes(h.dtype), row_bytes = slab_columns(h.block) * bytes;
  const int64_t pieces = slabs_per_block(h.block), slab_bytes = h.block * row_bytes, rows = rows_of(h);
  std::vector<int64_t> position(static_cast<size_t>(rows));
  for (int64_t p = 0; p < rows; ++p) position[static_cast<size_t>(order[p])] = p;
  int64_t at = 0;
  crow[0] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t p = position[static_cast<size_t>(row)];
    for (int64_t slab = starts[p]; slab < starts[p + 1]; slab += pieces, ++at) {
      if (columns[slab] == h.k / slab_columns(h.block)) break;
      col[at] = static_cast<int32_t>(columns[slab] / pieces);
      char* block = values + at * h.block * h.block * bytes;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const char* from = stored + (slab + piece) * slab_bytes;
        for (uint32_t offset = 0; offset < slab_bytes; offset += kVectorBytes) {
          const int64_t r = offset / row_bytes, c = offset % row_bytes;
          std::memcpy(block + (r * pieces + piece) * row_bytes + c, from + swizzle(offset, static_cast<int>(row_bytes)),
                      kVectorBytes);
        }
      }
    }
    crow[row + 1] = at;
  }
}

}  // namespace

Header layout(Kind kind, DType dtype, int64_t n, int64_t k, int64_t nnz, int64_t block, int64_t units) {
  const int64_t value_bytes = dtype_bytes(dtype);
  if (n < 0 || n >= kMaxSize) refuse("n in [0, 2^31)", n);
  if (k < 0 || k >= kMaxSize) refuse("k in [0, 2^31)", k);
  if (units < 0 || units >= kMaxSize) refuse("at most 2^31 vectors or slabs", units);
  if (nnz < 0 || (k == 0 ? nnz != 0 : nnz / k > n)) refuse("nnz of a matrix of this size", nnz);
  Header h{};
  h.magic = kMagic;
  h.kind = kind;
  h.dtype = dtype;
  h.n = n;
  h.k = k;
  h.nnz = nnz;
  h.block = block;
  h.units = units;
  int64_t at = kHeaderBytes;
  auto place = [&](int64_t bytes) {
    const int64_t begin = at;
    at += (bytes + kAlign - 1) / kAlign * kAlign;
    return begin;
  };
  if (kind == Kind::kCsr) {
    if (block != 1) refuse("block 1 of csr", block);
    const int64_t per_vector = values_per_vector(value_bytes);
    h.panels = panel_count(k);
    if (h.panels * n >= kMaxSize) refuse("at most 2^31 lists", h.panels * n);
    h.order = place(n);
    h.starts = place((h.panels * n + 1) * 4);
    h.columns = place(units * per_vector * 2);
    h.values = place(units * kVectorBytes);
  } else if (is_tiled(kind)) {
    if (block != kTileRows) refuse("block 64 of tiles", block);
    if (value_bytes != 2) throw std::invalid_argument("packed: expected bf16 or f16 tiles, got f32");
    if (k >= kMaxTiledColumns) refuse("k in [0, 2^27) of tiles", k);
    if (nnz > units * kUnitBytes / value_bytes) refuse("nnz that the streams hold", nnz);
    h.panels = piece_count(n);
    const int64_t tiles = tile_rows(n) * tile_columns(k);
    h.order = place(n);
    h.starts = place((tile_rows(n) * h.panels + 1) * 4);
    h.columns = place(kind == Kind::kBitmap ? tiles * (kTileRows * kTileColumns / 8) : tiles);
    h.values = place(units * kUnitBytes);
  } else {
    if (!block_is_valid(block)) refuse("blocks of 16, 32, 64 or 128", block);
    if (value_bytes != 2) throw std::invalid_argument("packed: expected bf16 or f16 blocks, got f32");
    if (n % block != 0 || k % block != 0) refuse("a block that divides the shape", block);
    if (nnz % (block * block) != 0 || nnz / block > units * slab_columns(block)) refuse("nnz of whole blocks", nnz);
    h.order = place(n / block * 4);
    h.starts = place((n / block + 1) * 4);
    h.columns = place(units * 4);
    h.values = place(units * block * slab_columns(block) * value_bytes);
  }
  h.bytes = at;
  return h;
}

const Header* check_header(const void* header, int64_t bytes) {
  if (bytes < kHeaderBytes) refuse("at least " + std::to_string(kHeaderBytes) + " bytes", bytes);
  const auto* h = static_cast<const Header*>(header);
  require(h->magic == kMagic, "a packing of the CUDA kernels (its first bytes differ)");
  require(static_cast<uint32_t>(h->kind) < kNumKinds, "a known kind");
  require(static_cast<uint32_t>(h->dtype) < kNumDTypes, "a known dtype");
  const Header wanted = layout(h->kind, h->dtype, h->n, h->k, h->nnz, h->block, h->units);
  require(std::memcmp(&wanted, h, sizeof wanted) == 0, "sections where a packing has them");
  if (h->bytes != bytes) refuse(std::to_string(h->bytes) + " bytes", bytes);
  return h;
}

const Header* check_blob(const void* data, int64_t bytes) {
  const Header* h = check_header(data, bytes);
  if (is_tiled(h->kind)) {
    check_tiles(*h);
  } else {
    h->kind == Kind::kCsr ? check_csr(*h) : check_bsr(*h);
  }
  return h;
}

void unpack(const Header* blob, int64_t* crow, int32_t* col, void* values) {
  auto* to = static_cast<char*>(values);
  if (is_tiled(blob->kind)) return unpack_tiles(*blob, crow, col, to);
  blob->kind == Kind::kCsr ? unpack_csr(*blob, crow, col, to) : unpack_bsr(*blob, crow, col, to);
}

}  // namespace gpu
}  // namespace sparseinfer
