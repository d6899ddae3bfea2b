// The interface of a packing to the common code (pack.cpp, validate.cpp, unpack.cpp). Each packing is one file,
// <name>.cpp, that defines `<name>_packing`; SI_PACKINGS in packings.h lists them.
//
// All packings but csr consist of cells (see packings.h) and are built, checked and read by the same code, one
// cell at a time, through CellPacking.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "packings/cells.h"
#include "packings/streams.h"
#include "sparseinfer/pack.h"

namespace sparseinfer {

// Appends rows [begin, end) of W to `out`, panel by panel. `h` holds the sizes (n, k, panel, panels, block, window,
// steps). Values of `w` are as wide as those of the packing: 4, 2 or 1 bytes.
using PackSplit = void (*)(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);

// Where a table of what differs between payloads of 4, 2 and 1 bytes holds those of a storage.
constexpr int kPayloadSizes = 3;
inline int payload_size(Storage storage) {
  const int64_t bytes = payload_bytes(storage);
  return bytes == 4 ? 0 : bytes == 2 ? 1 : 2;
}

// Choices that several packings make.

template <int64_t kRows>
int64_t always(const PackingHeader&) {
  return kRows;
}
inline int64_t all_columns(const PackingHeader& h) { return std::max<int64_t>(1, h.k); }

// Bytes of this machine's L1 data cache; 32 KB where the system does not say.
int64_t l1_bytes();

// Of many-token packings. Measured on Zen 4: x[128 columns][64 tokens] of fp32 and the streams share an L1 of 32 KB. On
// Zen 5, which has 48 KB, over 128 columns (geometric mean of 3072x768, 768x3072 and 4096x4096, 64 and 128 tokens, one
// thread, in turns): rowgroup at 50 to 80 % zeros is 1.06 times as fast with 160 and 1.10 with 192, and no faster with
// 224 or 256; rowlist at 70 to 95 % 1.01 with 160 and 1.00 with 192. In pairs two loads of x feed four multiplies, and
// fewer, longer lists are worth more than an L1 that holds them.
inline int64_t l1_panel(const PackingHeader& h, int64_t of_48_kb) {
  if (h.storage == Storage::kBF16) return 384;
  return l1_bytes() >= (int64_t{48} << 10) ? of_48_kb : 128;
}
inline int64_t widest_l1_panel(const PackingHeader&) { return kMaxPanel; }

// What a packing says of itself.

struct CellPacking {
  int64_t count_bytes = 1, row_bytes = 1, offset_bytes = 1;  // of one element of these sections

  // Columns of a panel where the caller does not choose, and the most that it may be; nullptr: one panel holds all
  // columns, and there is nothing to choose.
  int64_t (*panel)(const PackingHeader& h) = nullptr;
  int64_t (*widest_panel)(const PackingHeader& h) = nullptr;

  // Nullable. Sets what else the layout depends on, for the level whose kernels will read it; splits and panels are not
  // known yet.
  void (*choose)(const SparseView& w, Isa isa, PackingHeader& h) = nullptr;

  PackSplit pack_split[kPayloadSizes] = {};

  // Nullable. Refuses a header that `pack` does not write, beyond what holds for all packings.
  void (*check_header)(const PackingHeader& h) = nullptr;

  // Checks a cell of `rows` rows and `width` columns, and returns the number of values that it stores, fillings left
  // out. All that kernels read of the cell must be taken from `cell`.
  int64_t (*check_cell)(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) = nullptr;
};

struct PackInput {
  const SparseView& w;
  PackingHeader h;                     // sizes; sections are not placed yet
  const std::vector<int64_t>& bounds;  // first row of each split, then n
  const PackOptions& options;
};

struct Packing {
  const char* format = nullptr;  // what it is made from: "csr" or "bsr"
  bool pads_steps = false;       // of bsr: blocks need no whole number of steps of the storage
  int64_t block_rows = 1;        // of bsr: what the number of rows of a block has to be a multiple of
  // Fewer rows in a split are not worth a thread; chosen, not measured. Splits begin at multiples of `row_multiple`
  // rows.
  int64_t (*min_rows)(const PackingHeader& h) = always<1>;
  int64_t (*row_multiple)(const PackingHeader& h) = always<1>;
  const CellPacking* cells = nullptr;  // nullptr: it does not consist of cells

  Blob (*pack)(const Packing& packing, const PackInput& input) = nullptr;
  void (*check)(const Packing& packing, const PackingHeader& h) = nullptr;

  // Into the format: crow [n / block_rows + 1], col and values sized by nnz.
  void (*unpack[kPayloadSizes])(const PackingHeader& h, int64_t* crow, int32_t* col, void* values) = {};
};

#define SI_PACKING(number, name) extern const Packing name##_packing;
SI_PACKINGS(SI_PACKING)
#undef SI_PACKING
const Packing& packing_of(PackingKind kind);

// Whether it is made from bsr.
inline bool takes_blocks(PackingKind kind) { return std::strcmp(packing_of(kind).format, "bsr") == 0; }

// int8 (scales.cpp). Refuses scales that are missing or not finite, and rows whose sums int32 might not hold.
void check_scales(const SparseView& w);
std::vector<int32_t> row_sums(const SparseView& w);

// `pack` and `check` of a packing of cells.
Blob pack_cells(const Packing& packing, const PackInput& input);
void check_cells(const Packing& packing, const PackingHeader& h);

// One of `unpack` for a packing of cells made from csr; `kVisit` names every unit that a cell stores.
template <class Payload>
using VisitCell = void (*)(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink);
template <class Payload, VisitCell<Payload> kVisit>
void unpack_rows(const PackingHeader& h, int64_t* crow, int32_t* col, void* values) {
  RowSink<Payload> sink(h.n);
  for_cells(h, [&](const CellPlace& place) { kVisit(h, place, sink); });
  sink.write_to(crow, col, static_cast<Payload*>(values));
  for_cells(h, [&](const CellPlace& place) { kVisit(h, place, sink); });
  sink.sort();
}

// The parts that all packings of cells have; what differs is set afterwards.
constexpr CellPacking cells_of(PackSplit pack4, PackSplit pack2, PackSplit pack1,
                               int64_t (*check_cell)(const PackingHeader&, int64_t, int64_t, CellReader&)) {
  CellPacking cells;
  cells.pack_split[0] = pack4;
  cells.pack_split[1] = pack2;
  cells.pack_split[2] = pack1;
  cells.check_cell = check_cell;
  return cells;
}

constexpr Packing packing_of_cells(const CellPacking* cells) {
  Packing packing;
  packing.cells = cells;
  packing.pack = pack_cells;
  packing.check = check_cells;
  return packing;
}

// The same, made from csr.
template <VisitCell<uint32_t> kVisit4, VisitCell<uint16_t> kVisit2, VisitCell<uint8_t> kVisit1>
constexpr Packing packing_of_rows(const CellPacking* cells) {
  Packing packing = packing_of_cells(cells);
  packing.format = "csr";
  packing.unpack[0] = unpack_rows<uint32_t, kVisit4>;
  packing.unpack[1] = unpack_rows<uint16_t, kVisit2>;
  packing.unpack[2] = unpack_rows<uint8_t, kVisit1>;
  return packing;
}

}  // namespace sparseinfer
