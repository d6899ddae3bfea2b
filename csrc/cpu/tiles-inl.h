// The common part of all many-token kernels. Tokens are divided into tiles; x is repacked once per call into tiles
// [panels][columns][tokens], so that one load serves a vector of tokens of one column. A Body multiplies one cell
// (rows of a split x columns of a panel) into sums [row][tokens] that stay in L2 between panels. A Body says which
// TileMode it multiplies in, how many rows of sums it keeps in registers (kRows), how wide its panels are and how much
// scratch memory it needs.
//
// Loop order: tile > chunk of rows > panel (x slice in L1) > split > Body. The epilogue transposes the sums in
// registers and writes them to y[m, n]. Tiles of tokens are packed and finished by tokens-inl.h, those of a
// convolution by conv-inl.h.
#pragma once

#include <string.h>

#include "cpu/conv-inl.h"
#include "cpu/conv_bytes-inl.h"
#include "cpu/quantize-inl.h"
#include "cpu/tokens-inl.h"
#include "cpu/types-inl.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

// Rows of sums per chunk: 512 x 64 tokens x 4 bytes = 128 KB, an eighth of L2 on current server cores.
constexpr int64_t kChunkRows = kMaxSplitRows;

// What most Bodies say of themselves.
struct PackedPanels {
  static constexpr bool kForImages = false;  // reads channels where they lie, and has `last_cell`
  static int64_t panel(const PackingHeader* w) { return w->panel; }
  static int64_t scratch_bytes(const PackingHeader*) { return 0; }
};

template <class Body>
struct Tiled {
  static constexpr TileMode kMode = Body::kMode;
  static constexpr bool kTakesConv = kMode == TileMode::kFloat || kMode == TileMode::kBytes;
  static constexpr bool kBytes = is_int8(kMode);
  static constexpr bool kNative = kMode == TileMode::kFloat || kBytes || Level::kPairDot;
  static constexpr int64_t kTileTokens = [] {
    if constexpr (is_int8(kMode)) return Level::kByteTileTokens<kMode>;
    return Level::kTileTokens<kMode, Body::kRows>;
  }();
  static constexpr int64_t kElement = kMode == TileMode::kBytes ? 1 : kMode == TileMode::kPairs ? 2 : 4;
  static constexpr int64_t kColumnsPerPosition = kMode == TileMode::kQuads ? 4 : kMode == TileMode::kDwords ? 2 : 1;
  using Scales = TileScales<kTileTokens>;
  static constexpr int64_t kScaleBytes = kBytes ? static_cast<int64_t>(sizeof(Scales)) : 0;  // before a tile of bytes
  static constexpr int64_t kGroup = kTileTokens < kByteGroup ? kTileTokens : kByteGroup;     // tokens rounded together

  // Positions of a panel: its columns, and one of zeros (packings.h).
  static int64_t positions(const PackingHeader* w) { return Body::panel(w) / kColumnsPerPosition + 1; }
  static int64_t panels(const PackingHeader* w) { return (w->k + Body::panel(w) - 1) / Body::panel(w); }
  static int64_t tiles(const SpmmArgs& a) { return (a.m + kTileTokens - 1) / kTileTokens; }
  static int64_t tile_bytes(const SpmmArgs& a) {
    return kScaleBytes + panels(a.w) * positions(a.w) * kTileTokens * kElement;
  }
  // Whether channels of the image are the columns of a tile, which then is not copied.
  static bool reads_planes(const SpmmArgs& a) { return Body::kForImages && channels_are_columns(a); }
  // Whether a panel of x is packed just before it is multiplied by all rows, in memory that never leaves L1.
  static bool packs_as_it_runs(const SpmmArgs& a) {
    return kMode == TileMode::kFloat && a.alone && a.w->n <= kChunkRows && !reads_planes(a);
  }
  static bool reads_workspace(const SpmmArgs& a) { return !reads_planes(a) && !packs_as_it_runs(a); }
  static int64_t workspace_bytes(const SpmmArgs& a) { return reads_workspace(a) ? tiles(a) * tile_bytes(a) : 0; }
  static int64_t panel_bytes(const SpmmArgs& a) {
    return packs_as_it_runs(a) ? positions(a.w) * kTileTokens * kElement : 0;
  }
  static constexpr int64_t kSumBytes = (kChunkRows + R) * kTileTokens * 4;  // with rows that the epilogue may read
  static int64_t scratch_bytes(const SpmmArgs& a) { return kSumBytes + panel_bytes(a) + Body::scratch_bytes(a.w); }
  static bool by_tokens(const SpmmArgs& a) { return kBytes && a.conv == nullptr; }
  static int64_t prepare_items(const SpmmArgs& a) {
    return !reads_workspace(a) ? 0 : tiles(a) * (by_tokens(a) ? kTileTokens / kGroup : panels(a.w));
  }

  template <class F>
  static SI_INLINE void with_shape(const SpmmArgs& a, int64_t tile, F f) {
    const int64_t left = a.m - tile * kTileTokens;
    const int64_t tokens = left < kTileTokens ? left : kTileTokens;
    if constexpr (kBytes) {
      Level::with_byte_tile<kMode>(tokens, f);
    } else {
      Level::with_tile<kMode, Body::kRows>(tokens, f);
    }
  }

  static void prepare(const SpmmArgs& a, int64_t begin, int64_t end) {
    if (kBytes && a.conv != nullptr) return prepare_images(a, begin, end);
    if constexpr (kBytes) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = i * kGroup / kTileTokens;
        with_shape(a, tile, [&](auto shape) {
          using S = decltype(shape);
          with_type(a.dtype, [&](auto type) { prepare_bytes<S, decltype(type)>(a, tile, i * kGroup % kTileTokens); });
        });
      }
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / panels(a.w), panel = i % panels(a.w);
      with_shape(a, tile, [&](auto shape) {
        using S = decltype(shape);
        char* to = a.workspace + tile * tile_bytes(a) + panel * positions(a.w) * S::kTokens * kElement;
        pack_panel<S>(a, Pixels<S::kTokens>(a, tile * kTileTokens), tile, panel, to);
      });
    }
  }

  // The columns of one panel for the tokens of one tile, and one column of zeros.
  template <class S>
  static void pack_panel(const SpmmArgs& a, const Pixels<S::kTokens>& pixels, int64_t tile, int64_t panel, char* out) {
    const int64_t width = Body::panel(a.w), first = panel * width, token = tile * kTileTokens;
    const int64_t left = a.w->k - first, columns = (left < width ? left : width) / kColumnsPerPosition;
    memset(out + (positions(a.w) - 1) * S::kTokens * kElement, 0, S::kTokens * kElement);
    if constexpr (kMode == TileMode::kFloat) {
      with_type(a.dtype, [&](auto type) {
        using T = decltype(type);
        float* to = reinterpret_cast<float*>(out);
        if (a.conv != nullptr) return pack_pixels<S::kTokens, T>(a, pixels, first, columns, to);
        pack_columns<S::kTokens, T>(a, token, first, columns, to);
      });
    } else if constexpr (kMode == TileMode::kDwords) {
      pack_bf16<S::kTokens, Dword>(a, token, first, columns, reinterpret_cast<float*>(out));
    } else {
      pack_bf16<S::kTokens, uint16_t>(a, token, first, columns, reinterpret_cast<uint16_t*>(out));
    }
  }

  // Tiles of pixels of images that are bytes already.
  static void prepare_images(const SpmmArgs& a, int64_t begin, int64_t end) {
    if constexpr (kMode == TileMode::kBytes) {
      const int64_t plane = a.conv->out_h * a.conv->out_w;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tile = i / panels(a.w), panel = i % panels(a.w), token = tile * kTileTokens;
        with_shape(a, tile, [&](auto shape) {
          using S = decltype(shape);
          char* base = a.workspace + tile * tile_bytes(a);
          Scales scales;
          for (int t = 0; t < S::kTokens; ++t) {
            const bool there = token + t < a.m;
            const TokenScale own = there ? a.image_scales[(a.first_token + token + t) / plane] : TokenScale{0.0f, 0};
            scales.scales[t] = own.scale;
            scales.zeros[t] = own.zero;
          }
          if (panel == 0) memcpy(base, &scales, sizeof scales);
          const int64_t first = panel * Body::panel(a.w), left = a.w->k - first;
          const int64_t columns = left < Body::panel(a.w) ? left : Body::panel(a.w);
          auto* out = reinterpret_cast<uint8_t*>(base + kScaleBytes + panel * positions(a.w) * S::kTokens);
          pack_pixel_bytes<S::kTokens>(a, token, first, columns, scales.zeros, out);
          memset(out + (positions(a.w) - 1) * S::kTokens, 0, S::kTokens);
        });
      }
    }
  }

  // Rounds the tokens whose bytes lie at kGroup positions of the tile from `first` on.
  template <class S, class T>
  static void prepare_bytes(const SpmmArgs& a, int64_t tile, int64_t first) {
    constexpr int kHere = S::kTokens < kGroup ? S::kTokens : static_cast<int>(kGroup);
    if (first >= S::kTokens) return;
    const int64_t token = tile * kTileTokens, k = a.w->k, width = Body::panel(a.w);
    char* base = a.workspace + tile * tile_bytes(a);
    Scales& scales = *reinterpret_cast<Scales*>(base);
    const T* rows[kByteGroup];
    TokenScale own[kByteGroup];
    for (int i = 0; i < kHere; ++i) {
      const int position = static_cast<int>(first) + i;
      const int t = kMode == TileMode::kBytes ? token_at<S::kTokens>(position) : position;
      const bool there = token + t < a.m;
      rows[i] = static_cast<const T*>(a.x) + (there ? token + t : 0) * a.ldx;
      own[i] = there ? find_scale(rows[i], k) : TokenScale{0.0f, 0};
      scales.scales[t] = own[i].scale;
      scales.zeros[t] = own[i].zero;
    }
    alignas(4) ByteRows bytes;
    for (int64_t panel = 0; panel < panels(a.w); ++panel) {
      char* out = base + kScaleBytes + (panel * positions(a.w) * S::kTokens + first) * kElement;
      const int64_t left = k - panel * width, columns = left < width ? left : width;
      for (int64_t c = 0; c < columns; c += kByteColumns) {
        const int64_t count = columns - c < kByteColumns ? columns - c : kByteColumns;
        for (int i = 0; i < kHere; ++i) quantize(rows[i] + panel * width + c, count, own[i], bytes[i]);
        put_bytes<S, kHere>(bytes, count, out + c / kColumnsPerPosition * S::kTokens * kElement);
      }
      memset(out + (positions(a.w) - 1) * S::kTokens * kElement, 0, static_cast<size_t>(kHere * kElement));
    }
  }

  template <class S, int kHere>
  static SI_INLINE void put_bytes(const ByteRows& bytes, int64_t count, char* out) {
    if constexpr (kMode == TileMode::kBytes) {
      turn_group<S::kTokens, kHere>(bytes, count, reinterpret_cast<uint8_t*>(out));
    } else {
      for (int group = 0; group < kHere; group += G) {
        const Dword* rows[G];
        for (int i = 0; i < G; ++i) rows[i] = reinterpret_cast<const Dword*>(bytes[(group + i) % kByteGroup]);
        turn<S::kTokens>(rows, count / kColumnsPerPosition, reinterpret_cast<float*>(out) + group);
      }
    }
  }

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char* scratch) {
    for (int64_t tile = 0; tile < tiles(a); ++tile) {
      with_shape(a, tile, [&](auto shape) {
        run_tile<decltype(shape)>(a, tile, begin, end, reinterpret_cast<float*>(scratch), scratch + kSumBytes);
      });
    }
  }

  template <class S>
  static void run_tile(const SpmmArgs& a, int64_t tile, int64_t begin, int64_t end, float* sums, char* scratch) {
    using Element = typename S::Element;
    if constexpr (Body::kForImages) {
      if (reads_planes(a)) {
        const float* x = static_cast<const float*>(a.x) + a.first_token + tile * kTileTokens;
        const auto plane = static_cast<size_t>(a.conv->x_plane), width = static_cast<size_t>(Body::panel(a.w));
        alignas(64) const float zeros[S::kTokens] = {};
        return run_panels<S>(a, tile, begin, end, sums, scratch, [&](int64_t i) {
          return Body::planes(x + static_cast<size_t>(i) * width * plane, plane, width, zeros);
        });
      }
    }
    if constexpr (kMode == TileMode::kFloat) {
      if (packs_as_it_runs(a)) {
        const Pixels<S::kTokens> pixels(a, tile * kTileTokens);
        int64_t packed = -1;
        return run_panels<S>(a, tile, begin, end, sums, scratch + panel_bytes(a), [&](int64_t i) -> const Element* {
          if (packed != i) pack_panel<S>(a, pixels, tile, i, scratch);
          packed = i;
          return reinterpret_cast<const Element*>(scratch);
        });
      }
    }
    const Element* x = reinterpret_cast<const Element*>(a.workspace + tile * tile_bytes(a) + kScaleBytes);
    run_panels<S>(a, tile, begin, end, sums, scratch, [&](int64_t i) { return x + i * positions(a.w) * S::kTokens; });
  }

  // `columns(panel)`: what the body reads of x.
  template <class S, class Columns>
  static SI_INLINE void run_panels(const SpmmArgs& a, int64_t tile, int64_t begin, int64_t end, float* sums,
                                   char* scratch, Columns columns) {
    const int64_t token = tile * kTileTokens;
    if constexpr (Body::kForImages && S::kTokens % R == 0 && S::Vec::L == R) {
      if (a.conv != nullptr && a.dtype == DType::kF32 && a.w->scales == 0 && panels(a.w) > 0) {
        const PixelRows<S::kTokens, float> rows(a, token);
        if (rows.fits) return end_rows<S>(a, begin, end, sums, scratch, columns, rows);
      }
    }
    for_chunks(a, begin, end, [&](int64_t first, int64_t last, int64_t row, int64_t rows) {
      memset(sums, 0, rows * S::kTokens * sizeof(float));
      for (int64_t panel = 0; panel < panels(a.w); ++panel) {
        multiply<S>(a, first, last, row, panel, columns(panel), sums, scratch);
      }
      finish<S>(a, sums, row, rows, token);
    });
  }

  // The same where rows are finished in registers, in the last panel.
  template <class S, class Columns, class Rows>
  static SI_INLINE void end_rows(const SpmmArgs& a, int64_t begin, int64_t end, float* sums, char* scratch,
                                 Columns columns, const Rows& put) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    const int64_t before = panels(a.w) - 1;
    for_chunks(a, begin, end, [&](int64_t first, int64_t last, int64_t row, int64_t rows) {
      if (before > 0) memset(sums, 0, rows * S::kTokens * sizeof(float));
      for (int64_t panel = 0; panel < before; ++panel) {
        multiply<S>(a, first, last, row, panel, columns(panel), sums, scratch);
      }
      const auto x = columns(before);
      for (int64_t i = first; i < last; ++i) {
        const float* own = sums + (split_rows[i] - row) * S::kTokens;
        if (before > 0) {
          Body::template last_cell<S, false>(a.w, i, before, x, own, put);
        } else {
          Body::template last_cell<S, true>(a.w, i, before, x, own, put);
        }
      }
    });
  }

  // Calls each(first split, end, first row, rows) for chunks of splits whose sums stay in the cache.
  template <class Each>
  static SI_INLINE void for_chunks(const SpmmArgs& a, int64_t begin, int64_t end, Each each) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    const int64_t most = panels(a.w) > 1 ? kChunkRows : kBlockRows;  // one panel: sums stay in L1
    for (int64_t s = begin; s < end;) {
      int64_t chunk_end = s + 1;
      while (chunk_end < end && split_rows[chunk_end + 1] - split_rows[s] <= most) ++chunk_end;
      each(s, chunk_end, split_rows[s], split_rows[chunk_end] - split_rows[s]);
      s = chunk_end;
    }
  }

  template <class S, class X>
  static SI_INLINE void multiply(const SpmmArgs& a, int64_t first, int64_t last, int64_t row, int64_t panel, X x,
                                 float* sums, char* scratch) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    for (int64_t i = first; i < last; ++i) {
      const int64_t at = split_rows[i] - row;
      Body::template cell<S>(a.w, i, panel, x, sums + at * S::kTokens, at, scratch);
    }
  }

  template <class S>
  static void finish(const SpmmArgs& a, float* sums, int64_t row, int64_t rows, int64_t token) {
    constexpr int kPairLanes = kMode == TileMode::kPairs && S::Vec::L > 4 ? S::Vec::L : 0;
    if constexpr (kMode == TileMode::kFloat) {
      if (a.w->scales != 0) scale_rows<typename S::Vec, S::kTokens>(a.w, sums, row, rows);
      with_type(a.dtype, [&](auto type) {
        using T = decltype(type);
        if (a.conv != nullptr) return finish_pixels<S::kTokens, T>(a, sums, row, rows, token);
        finish_tile<S::kTokens, kPairLanes, T>(a, sums, row, rows, token, NoScales{});
      });
    } else if constexpr (kBytes) {
      const auto& scales = *reinterpret_cast<const Scales*>(a.workspace + token / kTileTokens * tile_bytes(a));
      if (a.conv != nullptr) make_real<typename S::Vec, S::kTokens>(a.w, sums, row, rows, scales);
      with_type(a.dtype, [&](auto type) {
        using T = decltype(type);
        if (a.conv != nullptr) return finish_pixels<S::kTokens, T>(a, sums, row, rows, token);
        finish_tile<S::kTokens, kPairLanes, T>(a, sums, row, rows, token, scales);
      });
    } else if (a.dtype == DType::kF32) {
      finish_tile<S::kTokens, kPairLanes, float>(a, sums, row, rows, token, NoScales{});
    } else {
      finish_tile<S::kTokens, kPairLanes, BF16>(a, sums, row, rows, token, NoScales{});
    }
  }
};

}  // namespace
}  // namespace sparseinfer
