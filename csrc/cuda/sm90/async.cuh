// Hopper's asynchronous machinery: barriers in shared memory, bulk and tensor copies, warpgroup matrix products.
// One function per instruction; see the PTX ISA under the instruction's name.
#pragma once

#include <cuda.h>

#include "cuda/common.cuh"

namespace sparseinfer {
namespace gpu {

// mbarrier --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and keeps the phase open until so many bytes have been copied.
__device__ __forceinline__ void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity is over. A fresh barrier counts as one whose phase of parity 1 is.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  }
}

// True for one lane of a warp, always the same; all of them call it. The compiler knows that it is one alone, which
// spares it a loop around every copy.
__device__ __forceinline__ bool elected() {
  uint32_t is;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(is));
  return is != 0;
}

// Copies ----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void copy_bulk(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
// The map's box at (column, row); zeros where it lies outside.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Warpgroups ------------------------------------------------------------------------------------------------------

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Before the first product that reads sums written by other instructions.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending of the groups committed last are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The compiler knows nothing of products under way: it may move what sets or reads sums past the instructions above,
// but not past this.
template <int kSums>
__device__ __forceinline__ void wgmma_hold(float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// sums [64 x N] += x [64 x 16] . w [N x 16]^T, both along k in shared memory. N / 2 sums per thread.
#define SI_OUT4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SI_OUT16(i) SI_OUT4(i), SI_OUT4(i + 4), SI_OUT4(i + 8), SI_OUT4(i + 12)
#define SI_REGS8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SI_REGS16 SI_REGS8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SI_REGS32 SI_REGS16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SI_REGS64                                                                    \
  SI_REGS32                                                                          \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SI_WGMMA(type, n, regs, a, b, ...)                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #type "." #type " {" regs "}, " a ", " b \
               ", 1, 1, 1, 0, 0;"                                                                         \
               : __VA_ARGS__                                                                              \
               : "l"(x), "l"(w))
#define SI_WGMMAS(T, type)                                                                               \
  __device__ __forceinline__ void wgmma(float (&d)[8], uint64_t x, uint64_t w, T) {                      \
    SI_WGMMA(type, 16, SI_REGS8, "%8", "%9", SI_OUT4(0), SI_OUT4(4));                                    \
  }                                                                                                      \
  __device__ __forceinline__ void wgmma(float (&d)[16], uint64_t x, uint64_t w, T) {                     \
    SI_WGMMA(type, 32, SI_REGS16, "%16", "%17", SI_OUT16(0));                                            \
  }                                                                                                      \
  __device__ __forceinline__ void wgmma(float (&d)[32], uint64_t x, uint64_t w, T) {                     \
    SI_WGMMA(type, 64, SI_REGS32, "%32", "%33", SI_OUT16(0), SI_OUT16(16));                              \
  }                                                                                                      \
  __device__ __forceinline__ void wgmma(float (&d)[64], uint64_t x, uint64_t w, T) {                     \
    SI_WGMMA(type, 128, SI_REGS64, "%64", "%65", SI_OUT16(0), SI_OUT16(16), SI_OUT16(32), SI_OUT16(48)); \
  }
SI_WGMMAS(BF16, bf16)
SI_WGMMAS(F16, f16)
#undef SI_WGMMAS
#undef SI_WGMMA
#undef SI_REGS64
#undef SI_REGS32
#undef SI_REGS16
#undef SI_REGS8
#undef SI_OUT16
#undef SI_OUT4

}  // namespace gpu
}  // namespace sparseinfer
