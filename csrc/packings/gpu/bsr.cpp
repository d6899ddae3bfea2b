// The GPU packing `bsr`: stored blocks divided into swizzled slabs, block rows sorted by length (gpu_packings.h).
#include <cstring>
#include <vector>

#include "packings/gpu/packing.h"

namespace sparseinfer {
namespace gpu {
namespace {

int64_t rows_of(const Header& h) { return h.n / h.block; }

void lay_out(Header& h, SectionPlaces& places) {
  const int64_t block = h.block, value_bytes = dtype_bytes(h.dtype);
  if (!block_is_valid(block)) refuse("blocks of 16, 32, 64 or 128", block);
  if (value_bytes != 2) throw std::invalid_argument("packed: expected bf16 or f16 blocks, got f32");
  if (h.n % block != 0 || h.k % block != 0) refuse("a block that divides the shape", block);
  if (h.nnz % (block * block) != 0 || h.nnz / block > h.units * slab_columns(block)) {
    refuse("nnz of whole blocks", h.nnz);
  }
  h.order = places.add(h.n / block * 4);
  h.starts = places.add((h.n / block + 1) * 4);
  h.columns = places.add(h.units * 4);
  h.values = places.add(h.units * block * slab_columns(block) * value_bytes);
}

void check(const Header& h) {
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

void unpack_blocks(const Header& h, int64_t* crow, int32_t* col, char* values) {
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

constexpr Packing bsr_packing{lay_out, check, unpack_blocks};

}  // namespace gpu
}  // namespace sparseinfer
