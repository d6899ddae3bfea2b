// The launch functions named in kernels.inc, one per kernel template. BF16 and F16 are __nv_bfloat16 and __half.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernel.h"

namespace sparseinfer {
namespace gpu {

using BF16 = __nv_bfloat16;
using F16 = __half;

template <class T>
cudaError_t csr_few(const Args& args);  // simt/csr_few.cu, m <= 4
template <class T>
cudaError_t csr_tile(const Args& args);  // simt/csr_tile.cu
template <class T>
cudaError_t csr_decompress(const Args& args);  // simt/csr_decompress.cu
template <class T, int kBlock>
cudaError_t bsr_mma(const Args& args);  // sm80/bsr.cu
template <class T, int kBlock>
cudaError_t bsr_wgmma(const Args& args);  // sm90/bsr.cu
template <class T, Kind kKind, int kTokens>
cudaError_t tiled_mma(const Args& args);  // sm80/tiles.cu
template <class T, Kind kKind, int kTokens>
cudaError_t tiled_bulk(const Args& args);  // sm90/tiles.cu
template <class T, Kind kKind>
cudaError_t tiled_decompress(const Args& args);  // sm80/tiles.cu

}  // namespace gpu
}  // namespace sparseinfer
