// Product of csr for many tokens: a block of threads computes kRows rows of W times 32 tokens (fp32) or 64 (16 bits).
//
// A panel of x lies transposed in shared memory: 128 bytes for each column, one per token. A warp works on 4 rows at a
// time, 8 threads each; every thread holds 4 or 8 tokens. For one unit it reads 16 bytes of x (the 8 threads together
// one column, so there are no bank conflicts), and value and position of the column are the same for the 8.
//
// In fp32 shared memory limits the speed: its 128 bytes per clock and multiprocessor are 32 multiply-adds of the 128
// that the arithmetic could do. In 16 bits they would be 64, but with widening the 8 multiply-adds of a unit take 23
// instructions (SASS of 9.0), and issuing those limits them to 45. Filling the tile costs 1 / (kRows * density) of
// either.
//
// Registers hold the sums of kRows / 64 rows and their tokens over all panels, added in the order of the columns.
#include "cuda/positions.h"
#include "cuda/simt/csr_lists.cuh"

namespace sparseinfer {
namespace gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRowThreads = 8;                 // that share a row
constexpr int kRowsAtOnce = 32 / kRowThreads;  // of a warp
constexpr int kTileBytes = (kPanelColumns + 1) * kTileRowBytes;

struct Tile {
  Lists w;
  const void* x;
  int64_t ldx;
  Output out;
  int row_tiles;
  bool aligned;  // every row of x begins at a multiple of 16 bytes
};

// 16 bytes of a row of x from `at` on, of which `count` elements belong to the panel; zeros behind them.
template <class T>
__device__ __forceinline__ uint4 load_row(const T* at, int count, bool aligned) {
  if (aligned && count >= kPerVector<T>) return __ldg(reinterpret_cast<const uint4*>(at));
  alignas(16) T v[kPerVector<T>];
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) v[i] = i < count ? at[i] : T(0.0f);
  return *reinterpret_cast<const uint4*>(v);
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Turns columns [first, first + width) of tokens [token, token + kTokens) into the tile. A warp reads 8 x 16 bytes of
// each of 4 tokens (or pairs of tokens) and stores words: see x_column_offset for why those miss each other's banks.
template <class T>
__device__ __forceinline__ void fill(const Tile& a, char* tile, int first, int width, int token) {
  constexpr int kVector = kPerVector<T>, kPair = kPerWord<T>;
  const int lane = threadIdx.x % 32;
#pragma unroll 4
  for (int group = threadIdx.x / 32; group < fill_groups(kVector); group += kWarps) {
    const int c = fill_column(group, lane, kVector), t = token + fill_token(group, lane, kVector, kPair);
    if (c >= width) continue;
    uint4 v[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      const T* row = static_cast<const T*>(a.x) + (t + i) * a.ldx + first + c;
      v[i] = t + i < a.out.m ? load_row(row, width - c, a.aligned) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      uint32_t word = word_of(v[0], i / kPair);
      if constexpr (kPair == 2) word = __byte_perm(word, word_of(v[1], i / 2), i % 2 == 0 ? 0x5410 : 0x7632);
      *reinterpret_cast<uint32_t*>(tile + fill_position(group, lane, c + i)) = word;
    }
  }
}

// sums += the units of vector v times x, for this thread's tokens.
template <class T>
__device__ __forceinline__ void multiply(const Vector<T>& v, const char* tile, int chunk,
                                         float (&sums)[kPerVector<T>]) {
  float w[kPerVector<T>];
  widen<T>(v.values, w);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) {
    const uint32_t at = v.column(i) ^ static_cast<uint32_t>(chunk * kVectorBytes);
    float x[kPerVector<T>];
    widen<T>(*reinterpret_cast<const uint4*>(tile + at), x);
#pragma unroll
    for (int t = 0; t < kPerVector<T>; ++t) sums[t] = fmaf(w[i], x[t], sums[t]);
  }
}

template <class T, int kRows>
__global__ void __launch_bounds__(kThreads, 2) spmm_csr_tile(const __grid_constant__ Tile a) {
  constexpr int kTokens = kTileRowBytes / static_cast<int>(sizeof(T)), kVector = kPerVector<T>;
  constexpr int kTurns = kRows / (kWarps * kRowsAtOnce);
  static_assert(kRows % kWindowRows == 0, "windows are whole");
  static_assert(kPanelColumns % kVector == 0, "no 16 bytes of x belong to two panels");
  static_assert(kTokens * (kRows + 1) * 4 <= kTileBytes, "the sums fit where x was");
  char* const tile = dynamic_shared();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunk = lane % kRowThreads;
  const int first_row = static_cast<int>(blockIdx.x % a.row_tiles) * kRows;
  const int token = static_cast<int>(blockIdx.x / a.row_tiles) * kTokens;

  int position[kTurns];
  float sums[kTurns][kVector];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    position[turn] = first_row + tile_position(turn, warp, kWarps, lane);
#pragma unroll
    for (int t = 0; t < kVector; ++t) sums[turn][t] = 0.0f;
  }
  if (threadIdx.x < kTileRowBytes / 4) {  // the column of zeros that filling points to
    reinterpret_cast<uint32_t*>(tile + kPanelColumns * kTileRowBytes)[threadIdx.x] = 0;
  }

  for (int panel = 0; panel < a.w.panels; ++panel) {
    uint32_t begin[kTurns], end[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const bool exists = position[turn] < a.w.n;
      const uint32_t* start = a.w.starts + static_cast<int64_t>(panel) * a.w.n + position[turn];
      begin[turn] = exists ? __ldg(start) : 0;
      end[turn] = exists ? __ldg(start + 1) : 0;
    }
    __syncthreads();
    fill<T>(a, tile, panel * kPanelColumns, a.w.panel_width(panel), token);
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      Vector<T> next;
      uint32_t v = begin[turn];
      if (v < end[turn]) next.load(a.w, v);
      while (v < end[turn]) {
        const Vector<T> now = next;
        if (++v < end[turn]) next.load(a.w, v);
        multiply<T>(now, tile, chunk, sums[turn]);
      }
    }
  }

  // Through shared memory, [token][row], so that y is written along its rows.
  constexpr int kPitch = kRows + 1;
  float* turned = reinterpret_cast<float*>(tile);
  __syncthreads();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    if (position[turn] >= a.w.n) continue;
    const int row = a.w.row(position[turn]) - first_row;
#pragma unroll
    for (int t = 0; t < kVector; ++t) turned[(chunk * kVector + t) * kPitch + row] = sums[turn][t];
  }
  __syncthreads();
  const int rows = min(kRows, a.w.n - first_row);
  for (int row = lane; row < rows; row += 32) {
    const float bias = bias_at<T>(a.out.bias, a.out.wide_bias, first_row + row);
    for (int t = warp; t < min(kTokens, a.out.m - token); t += kWarps) {
      T* y = static_cast<T*>(a.out.y) + (token + t) * a.out.ldy + first_row + row;
      narrow(activate(turned[t * kPitch + row] + bias, a.out.activation), y);
    }
  }
}

template <class T, int kRows>
cudaError_t launch(const Args& args) {
  constexpr int kTokens = kTileRowBytes / static_cast<int>(sizeof(T));
  const int64_t row_tiles = (args.w.n + kRows - 1) / kRows, token_tiles = (args.m + kTokens - 1) / kTokens;
  const Tile tile{Lists::of(args),
                  args.x,
                  args.ldx,
                  Output::of(args),
                  static_cast<int>(row_tiles),
                  reinterpret_cast<uintptr_t>(args.x) % 16 == 0 && args.ldx * sizeof(T) % 16 == 0};
  if (const cudaError_t error = allow_shared<spmm_csr_tile<T, kRows>>(args, kTileBytes)) return error;
  const auto blocks = static_cast<unsigned>(row_tiles * token_tiles);
  return start(spmm_csr_tile<T, kRows>, blocks, kThreads, kTileBytes, args.stream, tile);
}

}  // namespace

// Tall tiles fill x for more rows at once; low ones are for products that would leave multiprocessors idle otherwise.
template <class T>
cudaError_t csr_tile(const Args& args) {
  constexpr int kTokens = kTileRowBytes / static_cast<int>(sizeof(T)), kTall = sizeof(T) == 4 ? 256 : 128;
  const int64_t tall_tiles = ((args.w.n + kTall - 1) / kTall) * ((args.m + kTokens - 1) / kTokens);
  return tall_tiles >= 2 * args.multiprocessors ? launch<T, kTall>(args) : launch<T, kWindowRows>(args);
}

template cudaError_t csr_tile<float>(const Args&);
template cudaError_t csr_tile<BF16>(const Args&);
template cudaError_t csr_tile<F16>(const Args&);

}  // namespace gpu
}  // namespace sparseinfer
