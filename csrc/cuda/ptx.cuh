// Instructions that CUDA C++ has no functions for, one function each; see the PTX ISA under the instruction's name.
// Those of Hopper are in sm90/async.cuh.
#pragma once

#include "cuda/launchers.h"
#include "cuda/start.h"

namespace sparseinfer {
namespace gpu {

// The shared memory that a launch asks for.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

// 16 bytes that nothing writes meanwhile, asked for here: the compiler would move a plain load behind the next wait,
// and what it waits for could not come at the same time.
__device__ __forceinline__ uint4 load_now(const void* at) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}

// A value that all lanes of a warp have, in a uniform register: loads and stores take it as part of their address.
__device__ __forceinline__ uint32_t uniform(uint32_t v) { return __reduce_max_sync(~0u, v); }

__device__ __forceinline__ uint32_t load_shared_u8(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_shared_u16(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_shared(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void load_shared(uint32_t at, uint32_t (&v)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void store_shared_u16(uint32_t at, uint32_t low) {
  asm volatile("{ .reg .u16 h; cvt.u16.u32 h, %1; st.shared.u16 [%0], h; }" ::"r"(at), "r"(low) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t at, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// To shared memory, 16 bytes; zeros instead if `exists` is false.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kPending of this thread's groups committed last are unfinished.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ldmatrix.x4; see sm80/fragments.h for the address that each thread names.
__device__ __forceinline__ void load_matrices(uint32_t at, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}

// sums [16 x 8] += x [16 x 16] . w [16 x 8]
#define SI_MMA(type)                                                                  \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(w[0]), "r"(w[1]))
__device__ __forceinline__ void mma(float* sums, const uint32_t (&x)[4], const uint32_t* w, BF16) { SI_MMA("bf16"); }
__device__ __forceinline__ void mma(float* sums, const uint32_t (&x)[4], const uint32_t* w, F16) { SI_MMA("f16"); }
#undef SI_MMA

}  // namespace gpu
}  // namespace sparseinfer
