// Packings: kernel-private layouts of a sparse W[n, k]. One packing is one blob of bytes: this header, then
// sections at the byte offsets it names, each 64-byte aligned. Blobs live in memory only; they are never written
// to disk, so the layout may change with every version.
//
// Vocabulary. A *unit* is what one multiply consumes: 1 column in fp32, 2 columns in bf16; its payload is always
// 32 bits. A *panel* is a range of `panel` units whose slice of x stays in L1. A *split* is a range of rows of about
// equal work, the grain of threading. A *cell* is one split x one panel; cells are stored split-major.
#pragma once

#include <stdint.h>

#include "sparseinfer/dtypes.h"

namespace sparseinfer {

enum class PackingKind : uint32_t { kCsr = 0, kRowgroup = 1, kRowlist = 2, kBsr = 3, kSell = 4 };
constexpr int kNumPackings = 5;
extern const char* const kPackingNames[kNumPackings];

constexpr uint64_t kPackingMagic = 0x5245464e49505331ull;
constexpr int64_t kPackingAlign = 64;

// Byte positions of the sections, from the start of the blob. What each section holds depends on the kind.
struct PackingHeader {
  uint64_t magic;
  PackingKind kind;
  DType dtype;
  int64_t bytes;  // whole blob
  int64_t n, k, nnz;
  int64_t unit;    // columns per unit
  int64_t panel;   // units per panel
  int64_t panels;  // ceil(ceil(k / unit) / panel)
  int64_t splits;
  int64_t block_rows, block_cols;  // bsr only
  int64_t units;                   // stored units (csr: nnz; rowgroup: non-empty columns of 4 rows; bsr: blocks)
  int64_t split_rows;              // int64[splits + 1], first row of each split
  int64_t cells;                   // Cell[splits * panels + 1]
  int64_t counts;   // rowgroup: PatternCounts[]; rowlist: Run[]; bsr, sell: uint8[]; csr: int64 crow[n + 1]
  int64_t rows;     // rowlist: uint16[], rows within the split, longest lists first; sell: masks
  int64_t offsets;  // uint8[] position in the panel; csr: uint32 columns; bsr: uint8 block position
  int64_t values;   // uint32 payloads in loop order
};

// Where a cell's streams start, in elements of each section.
struct Cell {
  int64_t values;
  int64_t offsets;
  int64_t counts;
  int64_t rows;
};

struct PatternCounts {
  uint8_t of[16];  // units whose stored rows are the set bits of the position
};

// rowlist: `rows` consecutive rows that store `length` units each in this cell.
struct Run {
  uint16_t length;
  uint16_t rows;
};

constexpr int64_t kGroupRows = 4;       // rows per group of rowgroup
constexpr int64_t kPatterns = 16;       // which of the 4 rows are stored; pattern 0 is never stored
constexpr int64_t kMaxPanel = 256;      // positions in a panel are one byte
constexpr int64_t kMaxSplitRows = 512;  // accumulators of a split, 512 x 64 tokens, stay in L2

// sell: a slice of 16 rows steps through a chunk of 64 units together. Its cells hold whole rows: one panel.
constexpr int64_t kSliceRows = 16;
constexpr int64_t kChunkUnits = 64;

// bsr: rows multiplied together; a strip never crosses a block.
static inline int64_t strip_rows(int64_t block_rows) { return block_rows % 4 == 0 ? 4 : block_rows % 2 == 0 ? 2 : 1; }

template <class T>
static inline const T* section(const PackingHeader* h, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(h) + offset);
}

}  // namespace sparseinfer
