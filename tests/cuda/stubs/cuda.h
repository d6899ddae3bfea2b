// What sm90/bsr.cu needs of the driver's interface.
#pragma once

#include "emulator.h"

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle {
  CU_TENSOR_MAP_SWIZZLE_32B = 32,
  CU_TENSOR_MAP_SWIZZLE_64B = 64,
  CU_TENSOR_MAP_SWIZZLE_128B = 128,
};
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

// A matrix of 16-bit elements and the box that is copied of it.
struct CUtensorMap {
  const char* base;
  int64_t columns, rows, pitch;
  int box_columns, box_rows, swizzle;
};

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
enum { cudaEnableDefault = 0 };

// "cuTensorMapEncodeTiled", with the limits that its documentation names.
inline CUresult encode_tiled_emulated(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* base,
                                      const cuuint64_t* sizes, const cuuint64_t* pitch, const cuuint32_t* box,
                                      const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const bool valid = rank == 2 && reinterpret_cast<uintptr_t>(base) % 16 == 0 && pitch[0] % 16 == 0 && sizes[0] > 0 &&
                     sizes[1] > 0 && box[0] > 0 && box[0] <= 256 && box[1] > 0 && box[1] <= 256 && steps[0] == 1 &&
                     steps[1] == 1 && box[0] * 2 % 16 == 0 && box[0] * 2 <= static_cast<unsigned>(swizzle);
  if (!valid) return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<const char*>(base),
          static_cast<int64_t>(sizes[0]),
          static_cast<int64_t>(sizes[1]),
          static_cast<int64_t>(pitch[0]),
          static_cast<int>(box[0]),
          static_cast<int>(box[1]),
          swizzle};
  return CUDA_SUCCESS;
}

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
  const bool known = std::string(name) == "cuTensorMapEncodeTiled";
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  if (known) *entry = reinterpret_cast<void*>(&encode_tiled_emulated);
  return cudaSuccess;
}
