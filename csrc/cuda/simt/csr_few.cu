// Product of csr for 1 to 4 tokens. Reading W limits its speed, so every weight is read once; x is in shared memory.
//
// A warp computes one row: its quarters of 8 threads take every fourth panel, each thread every eighth vector of a
// list. x lies in shared memory as fp32, [panel][kPanelColumns + 1][kTokens], the last column of a panel being zeros.
// If not all panels fit, they are loaded in several steps, between which a warp keeps the sums of kRows rows.
//
// The order of summation depends only on the row.
#include "cuda/simt/csr_lists.cuh"

namespace sparseinfer {
namespace gpu {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kListThreads = 8;
constexpr int kRows = 2;  // of a warp, per load of x

struct Few {
  Lists w;
  const void* x;
  int64_t ldx;
  Output out;
  int panels_at_once;
};

template <int kTokens>
constexpr int kPanelFloats = (kPanelColumns + 1) * kTokens;

template <class T, int kTokens>
__device__ __forceinline__ void fill(const Few& a, float* tile, int first_panel, int panels) {
  const int first = first_panel * kPanelColumns, columns = min(panels * kPanelColumns, a.w.k - first);
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const T* x = static_cast<const T*>(a.x) + t * a.ldx + first;
    for (int c = threadIdx.x; c < columns; c += kThreads) {
      const int at = c / kPanelColumns * kPanelFloats<kTokens> + c % kPanelColumns * kTokens + t;
      tile[at] = t < a.out.m ? static_cast<float>(x[c]) : 0.0f;
    }
    for (int p = threadIdx.x; p < panels; p += kThreads) tile[(p + 1) * kPanelFloats<kTokens> - kTokens + t] = 0.0f;
  }
}

// sums += one vector of W times x.
template <class T, int kTokens>
__device__ __forceinline__ void multiply(const Vector<T>& v, const float* panel, float (&sums)[kTokens]) {
  float w[kPerVector<T>];
  widen<T>(v.values, w);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) {
    const float* x = panel + v.column(i) / kTileRowBytes * kTokens;
    float column[kTokens];
    if constexpr (kTokens == 4) {
      *reinterpret_cast<float4*>(column) = *reinterpret_cast<const float4*>(x);
    } else if constexpr (kTokens == 2) {
      *reinterpret_cast<float2*>(column) = *reinterpret_cast<const float2*>(x);
    } else {
      column[0] = *x;
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) sums[t] = fmaf(w[i], column[t], sums[t]);
  }
}

template <class T, int kTokens>
__global__ void __launch_bounds__(kThreads, 2) spmm_csr_few(const __grid_constant__ Few a) {
  float* const x_panels = reinterpret_cast<float*>(dynamic_shared());
  const int lane = threadIdx.x % 32, quarter = lane / kListThreads, mine = lane % kListThreads;
  const int warps = static_cast<int>(gridDim.x) * kWarps,
            warp = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const bool at_once = a.panels_at_once >= a.w.panels;
  if (at_once) {
    fill<T, kTokens>(a, x_panels, 0, a.w.panels);
    __syncthreads();
  }
  // All warps of a block make the same number of rounds, because they fill x together.
  const int rounds = (a.w.n + warps * kRows - 1) / (warps * kRows);
  for (int round = 0; round < rounds; ++round) {
    float sums[kRows][kTokens] = {};
    for (int first = 0; first < a.w.panels; first += a.panels_at_once) {
      const int panels = min(a.panels_at_once, a.w.panels - first);
      if (!at_once) {
        __syncthreads();
        fill<T, kTokens>(a, x_panels, first, panels);
        __syncthreads();
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int position = (round * kRows + r) * warps + warp;
        if (position >= a.w.n) continue;
        for (int p = quarter; p < panels; p += 32 / kListThreads) {
          const uint32_t* start = a.w.starts + static_cast<int64_t>(first + p) * a.w.n + position;
          const uint32_t end = __ldg(start + 1);
          const float* panel = x_panels + p * kPanelFloats<kTokens>;
#pragma unroll 2  // four at a time, which is the compiler's choice, spills
          for (uint32_t v = __ldg(start) + mine; v < end; v += kListThreads) {
            Vector<T> units;
            units.load(a.w, v);
            multiply<T, kTokens>(units, panel, sums[r]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int position = (round * kRows + r) * warps + warp;
      if (position >= a.w.n) continue;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sums[r][t] += __shfl_xor_sync(~0u, sums[r][t], step);
      }
      if (lane != 0) continue;
      const int row = a.w.row(position);
      const float bias = bias_at<T>(a.out.bias, a.out.wide_bias, row);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (t >= a.out.m) continue;
        narrow(activate(sums[r][t] + bias, a.out.activation), static_cast<T*>(a.out.y) + t * a.out.ldy + row);
      }
    }
  }
}

template <class T, int kTokens>
cudaError_t launch(const Args& args) {
  constexpr int kPanelBytes = kPanelFloats<kTokens> * 4;
  const int most = args.shared_bytes / kPanelBytes, panels = static_cast<int>(args.w.panels);
  Few few{Lists::of(args), args.x, args.ldx, Output::of(args), panels < most ? panels : most};
  if (few.panels_at_once < 1) few.panels_at_once = 1;  // a matrix without columns
  constexpr auto* kKernel = spmm_csr_few<T, kTokens>;
  if (const cudaError_t error = allow_shared<kKernel>(args, most * kPanelBytes)) return error;
  const int bytes = few.panels_at_once * kPanelBytes;
  const int64_t wanted = (args.w.n + kWarps - 1) / kWarps;
  const int64_t resident = int64_t{args.multiprocessors} * (2 * bytes <= args.shared_bytes ? 2 : 1);
  const auto blocks = static_cast<unsigned>(wanted < resident ? wanted : resident);
  return start(kKernel, blocks, kThreads, bytes, args.stream, few);
}

}  // namespace

template <class T>
cudaError_t csr_few(const Args& args) {
  return args.m == 1 ? launch<T, 1>(args) : args.m == 2 ? launch<T, 2>(args) : launch<T, 4>(args);
}

template cudaError_t csr_few<float>(const Args&);
template cudaError_t csr_few<BF16>(const Args&);
template cudaError_t csr_few<F16>(const Args&);

}  // namespace gpu
}  // namespace sparseinfer
