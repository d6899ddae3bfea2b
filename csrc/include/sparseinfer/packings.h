// Packings: the layouts of a sparse W[n, k] that kernels read. One packing is one block of bytes (blob): this header,
// then sections at the byte offsets it names, each 64-byte aligned. Blobs belong to one build on one machine, in
// memory or in its cache (io/packings.py), so the layout may change with every version.
//
// Vocabulary. A *unit* is one stored column (bsr: one stored block; grouplist: a column of a group of rows). Its
// *payload* is its value in the packing's storage, 4, 2 or 1 bytes. A *panel* is a range of `panel` columns whose slice
// of x stays in L1. A *split* is a range of rows of about equal work, the grain of threading. A *cell* is one split x
// one panel; cells are stored split-major.
#pragma once

#include <stdint.h>

#include "sparseinfer/dtypes.h"

namespace sparseinfer {

// Every packing: its number, and its name, which is that of its file in csrc/packings.
#define SI_PACKINGS(X)     \
  X(kCsr, csr)             \
  X(kRowgroup, rowgroup)   \
  X(kRowlist, rowlist)     \
  X(kBsr, bsr)             \
  X(kSell, sell)           \
  X(kBitmap, bitmap)       \
  X(kTilemap, tilemap)     \
  X(kGrouplist, grouplist) \
  X(kGrouptile, grouptile)

#define SI_PACKING_NAME(number, name) #name,
enum class PackingKind : uint32_t { SI_PACKINGS(SI_NUMBER) };
constexpr const char* kPackingNames[] = {SI_PACKINGS(SI_PACKING_NAME)};
constexpr int kNumPackings = sizeof kPackingNames / sizeof *kPackingNames;
#undef SI_PACKING_NAME
static inline const char* name_of(PackingKind kind) { return kPackingNames[static_cast<int>(kind)]; }

constexpr uint64_t kPackingMagic = 0x5245464e49505332ull;
constexpr int64_t kPackingAlign = 64;
constexpr int64_t kValuesSlack = 64;  // readable bytes behind the last payload

// Byte positions of the sections, from the start of the blob. What each section holds depends on the kind.
struct PackingHeader {
  uint64_t magic;
  PackingKind kind;
  DType dtype;      // of the format that was packed, and that unpacking gives back
  Storage storage;  // of the payloads
  uint32_t strip;   // bsr only: rows multiplied together
  int64_t bytes;    // whole blob
  int64_t n, k, nnz;
  int64_t panel;   // columns per panel
  int64_t panels;  // ceil(k / panel)
  int64_t splits;
  int64_t block_rows, block_cols;  // bsr, grouplist, grouptile
  int64_t window, steps;           // sell only: columns of x in registers at a time; steps before they move on
  int64_t units;                   // entries of `offsets`
  int64_t split_rows;              // int64[splits + 1], first row of each split
  int64_t cells;                   // Cell[splits * panels + 1]
  int64_t counts;    // csr: int64 crow[n + 1]; rowgroup: PatternCounts[]; rowlist: Run[]; bsr: uint8[]; sell: uint32[];
                     // tilemap: TileStrip[]; grouplist, grouptile: uint16[]
  int64_t rows;      // rowlist, bsr of sorted strips: uint16[] row within the split; sell: uint32[] first columns;
                     // bitmap: uint64[] masks; tilemap: masks of tiles, in pieces of 64 bytes
  int64_t offsets;   // rowgroup, rowlist, grouplist, grouptile: uint16[] column in the panel; sell, bsr: uint8[];
                     // csr, tilemap: uint32[]
  int64_t values;    // payloads in loop order
  int64_t scales;    // float[n], which multiply the sums of the rows; 0: there are none, the payloads are the weights
  int64_t row_sums;  // i8: int32[n], sums of each row's payloads, for the zero point of x; else 0
};

// Where a cell's streams start, in elements of each section.
struct Cell {
  int64_t values;
  int64_t offsets;
  int64_t counts;
  int64_t rows;
};

// rowgroup: steps (see rowgroup_step) of the units whose stored rows are the set bits of the position.
struct PatternCounts {
  uint16_t of[16];
};

// rowlist: `rows` consecutive rows that store `length` units each in this cell.
struct Run {
  uint16_t length;
  uint16_t rows;
};

constexpr int64_t kGroupRows = 4;       // rows per group of rowgroup
constexpr int64_t kPatterns = 16;       // which of the 4 rows are stored; pattern 0 is never stored
constexpr int64_t kMaxPanel = 2048;     // columns; offsets are 16 bits, and x tiles of a panel should stay in L2
constexpr int64_t kMaxSplitRows = 512;  // accumulators of a split, 512 x 64 tokens, stay in L2

// Lists of units are filled up to whole steps with payloads of zero at the position after the panel's last column; the
// x tiles hold zeros there, so that NaN and Inf of x never meet the filling. Pair storage multiplies two units at a
// time, i8 four; rowgroup also multiplies four or two times in a step where a pattern has one row or two, so that its
// loops end without a remainder, which would cost a mispredicted branch. Not i8, whose filling would be sixteen units.
static inline int64_t rowlist_step(Storage storage) { return columns_per_step(storage); }
static inline int64_t rowgroup_step(Storage storage, int pattern_rows) {
  const bool alone = storage == Storage::kI8 || pattern_rows > 2;
  return columns_per_step(storage) * (alone ? 1 : pattern_rows == 1 ? 4 : 2);
}

// sell: a slice of 16 rows steps through windows of x together. The last position of a window is always zero: it is
// what the filling of short rows points to.
constexpr int64_t kSliceRows = 16;
constexpr int64_t kMaxWindow = 64;
static inline bool window_is_valid(int64_t window) {
  return window == 8 || window == 16 || window == 32 || window == 64;
}
static inline bool steps_is_valid(int64_t steps) { return steps == 1 || steps == 2 || steps == 4 || steps == 8; }

// bitmap: columns per word of mask.
constexpr int64_t kMaskColumns = 64;
static inline int64_t mask_words(int64_t k) { return (k + kMaskColumns - 1) / kMaskColumns; }

// A tile of weights, as the tile unit multiplies it (cpu/amx.h): 16 steps of 2 inputs of bf16, or 4 of int8, for each
// of 16 outputs. Other storages become bf16.
constexpr int64_t kTileOutputs = 16, kTileSteps = 16;
static inline int64_t tile_inputs(Storage storage) { return kTileSteps * (storage == Storage::kI8 ? 4 : 2); }

// tilemap: where a strip of kTileOutputs rows starts.
struct TileStrip {
  int64_t tiles, values;
};

// bsr: rows multiplied together; a strip never crosses a block. Blocks of whole tiles may have strips of kTileOutputs.
static inline bool consists_of_tiles(Storage storage, int64_t block_rows, int64_t block_cols) {
  const bool multiplied = storage == Storage::kBF16 || storage == Storage::kI8;
  return multiplied && block_rows % kTileOutputs == 0 && block_cols % tile_inputs(storage) == 0;
}
static inline int64_t strip_rows(int64_t block_rows) { return block_rows % 4 == 0 ? 4 : block_rows % 2 == 0 ? 2 : 1; }
// Strips of one row of i8 are short lists: sorted by length within a cell, so that loop exits are predicted.
static inline bool sorts_strips(const PackingHeader& h) { return h.storage == Storage::kI8 && h.strip == 1; }

// grouplist, grouptile: rows that share a list of columns; a group never crosses a block.
constexpr int64_t kListRows = 16;
static inline int64_t list_rows(int64_t block_rows) {
  for (int64_t rows = kListRows; rows > 4; rows /= 2) {
    if (block_rows % rows == 0) return rows;
  }
  return strip_rows(block_rows);
}

template <class T>
static inline const T* section(const PackingHeader* h, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(h) + offset);
}

}  // namespace sparseinfer
