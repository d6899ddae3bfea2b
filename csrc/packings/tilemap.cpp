// The packing `tilemap`: bitmap for levels with tiles. Strips of 16 rows are cut into tiles, as the tile unit
// multiplies them (cpu/amx.h): of 32 columns, a row r of a tile holds columns 2 r and 2 r + 1 of the 16 rows of W; in
// storage i8 of 64 columns, 4 r to 4 r + 3. Tiles without a stored weight are left out. A bit for every weight of the
// others, and the values of those that are stored. One panel holds all columns.
//
//   counts   TileStrip [strips of the split + 1]: first tile and first value of the strip, counted from those of the
//            cell; then the ends
//   offsets  uint32, for every tile: which one of its strip, ascending
//   rows     masks [tiles][16], of 32 bits, in storage i8 of 64, in pieces of 64 bytes; which weight a bit stands for
//   is
//            in TileMasks. 0 past the last row and column
//   values   payloads, strip by strip, tile by tile: within a mask ascending in the row of W, then the column
#include <array>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

int64_t tiles_of(const PackingHeader& h) {
  const int64_t inputs = tile_inputs(h.storage);
  return (h.k + inputs - 1) / inputs;
}
int64_t strips_of(int64_t rows) { return (rows + kTileOutputs - 1) / kTileOutputs; }

// Threads share strips in pairs, which are multiplied together.
int64_t row_multiple(const PackingHeader&) { return 2 * kTileOutputs; }

constexpr int64_t kMaskPiece = 64;

// The masks of a tile. Bits are numbered such that a shift of words or of quads moves all of a row of the tile to the
// signs of its elements (cpu/tile_weights-inl.h).
template <class Mask>
struct TileMasks {
  static constexpr int64_t kColumns = sizeof(Mask) / 2;  // of a row of the tile
  static constexpr int64_t kPieces = kTileSteps * static_cast<int64_t>(sizeof(Mask)) / kMaskPiece;
  Mask of[kTileSteps];

  static Mask bit(int64_t i, int64_t c) {
    return Mask{1} << (kColumns == 2 ? kTileOutputs * c + i : 8 * (4 * (i % 2) + c) + 7 - i / 2);
  }

  // Calls f(row of W, column) within the tile for what it stores, in the order of its values.
  template <class F>
  void for_stored(F f) const {
    for (int64_t r = 0; r < kTileSteps; ++r) {
      for (int64_t i = 0; i < kTileOutputs; ++i) {
        for (int64_t c = 0; c < kColumns; ++c) {
          if ((of[r] & bit(i, c)) != 0) f(i, r * kColumns + c);
        }
      }
    }
  }

  int64_t stored() const {
    int64_t count = 0;
    for (Mask mask : of) count += __builtin_popcountll(mask);
    return count;
  }

  // Whether nothing is stored past so many rows and columns.
  bool within(int64_t rows, int64_t columns) const {
    bool holds = true;
    for_stored([&](int64_t i, int64_t c) { holds = holds && i < rows && c < columns; });
    return holds;
  }
};

// Calls f(Mask{}) with the type of a storage's masks.
template <class F>
auto with_masks(const PackingHeader& h, F f) {
  return h.storage == Storage::kI8 ? f(uint64_t{}) : f(uint32_t{});
}

template <class Payload, class Mask>
void pack_tiles(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  using Masks = TileMasks<Mask>;
  constexpr int64_t kInputs = Masks::kColumns * kTileSteps;
  const auto* values = static_cast<const Payload*>(w.values);
  TileStrip* starts = SplitStreams::extend<TileStrip>(out.counts, strips_of(end - begin) + 1);
  Payload* to = SplitStreams::extend<Payload>(out.values, w.crow[end] - w.crow[begin]);
  TileStrip now{};
  for (int64_t row = begin; row < end; row += kTileOutputs, *++starts = now) {
    int64_t at[kTileOutputs], stop[kTileOutputs];
    for (int64_t i = 0; i < kTileOutputs; ++i) {
      at[i] = w.crow[std::min(row + i, end)];
      stop[i] = w.crow[std::min(row + i + 1, end)];
    }
    for (int64_t tile = 0; tile < tiles_of(h); ++tile) {
      const int64_t first = tile * kInputs;
      Masks masks{};
      Payload dense[kTileOutputs][kInputs];
      for (int64_t i = 0; i < kTileOutputs; ++i) {
        for (; at[i] < stop[i] && w.col[at[i]] < first + kInputs; ++at[i]) {
          const int64_t c = w.col[at[i]] - first;
          dense[i][c] = values[at[i]];
          masks.of[c / Masks::kColumns] |= Masks::bit(i, c % Masks::kColumns);
        }
      }
      if (masks.stored() == 0) continue;
      masks.for_stored([&](int64_t i, int64_t c) { to[now.values++] = dense[i][c]; });
      *SplitStreams::extend<Masks>(out.rows, 1) = masks;
      *SplitStreams::extend<uint32_t>(out.offsets, 1) = static_cast<uint32_t>(tile);
      ++now.tiles;
    }
  }
}

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  if (h.panels == 0) return;
  out.cells.push_back({0, 0, 0, 0});
  with_masks(h, [&](auto mask) { pack_tiles<Payload, decltype(mask)>(h, w, begin, end, out); });
}

template <class Mask>
int64_t check_tiles(const PackingHeader& h, int64_t rows, CellReader& cell) {
  using Masks = TileMasks<Mask>;
  constexpr int64_t kInputs = Masks::kColumns * kTileSteps;
  const int64_t all = tiles_of(h), strips = strips_of(rows);
  const TileStrip* starts = section<TileStrip>(&h, h.counts) + cell.take_counts(strips + 1);
  TileStrip now{};
  for (int64_t s = 0; s < strips; ++s) {
    require(starts[s].tiles == now.tiles && starts[s].values == now.values, "counts");
    require(starts[s + 1].tiles >= now.tiles && starts[s + 1].tiles <= now.tiles + all, "counts");
    const int64_t tiles = starts[s + 1].tiles - now.tiles;
    const uint32_t* offsets = section<uint32_t>(&h, h.offsets) + cell.take_offsets(tiles);
    const auto* masks =
        reinterpret_cast<const Masks*>(section<char>(&h, h.rows) + cell.take_rows(tiles * Masks::kPieces) * kMaskPiece);
    for (int64_t i = 0; i < tiles; ++i) {
      require(offsets[i] < all && (i == 0 || offsets[i - 1] < offsets[i]), "offsets");
      require(masks[i].within(rows - s * kTileOutputs, h.k - offsets[i] * kInputs), "masks");
      now.values += masks[i].stored();
    }
    now.tiles += tiles;
  }
  require(starts[strips].values == now.values, "counts");
  cell.take_values(now.values);
  return now.values;
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t, CellReader& cell) {
  return with_masks(h, [&](auto mask) { return check_tiles<decltype(mask)>(h, rows, cell); });
}

template <class Payload, class Mask>
void visit_tiles(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  using Masks = TileMasks<Mask>;
  constexpr int64_t kInputs = Masks::kColumns * kTileSteps;
  const TileStrip* starts = section<TileStrip>(&h, h.counts) + place.cell->counts;
  const uint32_t* offsets = section<uint32_t>(&h, h.offsets) + place.cell->offsets;
  const auto* masks = reinterpret_cast<const Masks*>(section<char>(&h, h.rows) + place.cell->rows * kMaskPiece);
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  for (int64_t s = 0; s < strips_of(place.rows); ++s) {
    for (int64_t tile = starts[s].tiles; tile < starts[s + 1].tiles; ++tile) {
      masks[tile].for_stored([&](int64_t i, int64_t c) {
        sink.unit(place.row + s * kTileOutputs + i, offsets[tile] * kInputs + c, values++);
      });
    }
  }
}

template <class Payload>
void visit(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  with_masks(h, [&](auto mask) { visit_tiles<Payload, decltype(mask)>(h, place, sink); });
}

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.count_bytes = sizeof(TileStrip);
  cells.offset_bytes = sizeof(uint32_t);
  cells.row_bytes = kMaskPiece;
  cells.panel = all_columns;
  return cells;
}();

}  // namespace

constexpr Packing tilemap_packing = [] {
  Packing packing = packing_of_rows<visit<uint32_t>, visit<uint16_t>, visit<uint8_t>>(&kCells);
  packing.min_rows = always<32>;
  packing.row_multiple = row_multiple;
  return packing;
}();

}  // namespace sparseinfer
