// Decompresses csr to a dense matrix [n, k] in device memory, for products that are faster densely on tensor cores.
//
// A warp writes one panel of one row: it clears kPanelColumns values in shared memory, scatters the list into them and
// copies them out 16 bytes at a time. Rows of y begin at multiples of 16 bytes, and what lies between k and the next
// such multiple is written too.
#include "cuda/simt/csr_lists.cuh"

namespace sparseinfer {
namespace gpu {
namespace {

constexpr int kWarps = 8;

struct Decompress {
  Lists w;
  void* y;
  int64_t ldy;
};

// Of a warp, in shared memory: a panel, and a value for filling to fall into.
template <class T>
constexpr int kRowValues = kPanelColumns + kPerVector<T>;

template <class T>
__global__ void __launch_bounds__(32 * kWarps) decompress_csr(const __grid_constant__ Decompress a) {
  constexpr int kVector = kPerVector<T>;
  const int lane = threadIdx.x % 32;
  const int64_t list = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (list >= static_cast<int64_t>(a.w.panels) * a.w.n) return;
  T* row = reinterpret_cast<T*>(dynamic_shared()) + threadIdx.x / 32 * kRowValues<T>;
  for (int i = lane; i < kPanelColumns / kVector; i += 32) reinterpret_cast<uint4*>(row)[i] = make_uint4(0, 0, 0, 0);
  __syncwarp();
  const uint32_t end = __ldg(a.w.starts + list + 1);
  for (uint32_t v = __ldg(a.w.starts + list) + lane; v < end; v += 32) {
    Vector<T> units;
    units.load(a.w, v);
    alignas(16) T values[kVector];
    *reinterpret_cast<uint4*>(values) = units.values;
#pragma unroll
    for (int i = 0; i < kVector; ++i) row[units.column(i) / kTileRowBytes] = values[i];
  }
  __syncwarp();
  const int panel = static_cast<int>(list / a.w.n), position = static_cast<int>(list % a.w.n);
  T* y = static_cast<T*>(a.y) + a.w.row(position) * a.ldy + panel * kPanelColumns;
  for (int i = lane; i * kVector < a.w.panel_width(panel); i += 32) {
    reinterpret_cast<uint4*>(y)[i] = reinterpret_cast<const uint4*>(row)[i];
  }
}

}  // namespace

template <class T>
cudaError_t csr_decompress(const Args& args) {
  const int64_t lists = args.w.panels * args.w.n;
  const auto blocks = static_cast<unsigned>((lists + kWarps - 1) / kWarps);
  const Decompress decompress{Lists::of(args), args.y, args.ldy};
  return start(decompress_csr<T>, blocks, 32 * kWarps, kWarps * kRowValues<T> * sizeof(T), args.stream, decompress);
}

template cudaError_t csr_decompress<float>(const Args&);
template cudaError_t csr_decompress<BF16>(const Args&);
template cudaError_t csr_decompress<F16>(const Args&);

}  // namespace gpu
}  // namespace sparseinfer
