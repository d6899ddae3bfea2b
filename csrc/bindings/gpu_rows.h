// Converts a row of cuda/kernels.inc to Python, for _core and _cuda.
#pragma once

#include <pybind11/pybind11.h>

#include "sparseinfer/gpu_kernels.h"

inline pybind11::dict gpu_row(const sparseinfer::gpu::KernelRow& kernel) {
  pybind11::dict row;
  row["name"] = kernel.name;
  row["op"] = kernel.op;
  row["packing"] = kernel.packing;
  row["dtype"] = kernel.dtype;
  row["tile"] = kernel.tile;
  row["arch"] = kernel.arch;
  row["block"] = kernel.block;
  row["most_tokens"] = kernel.most_tokens;
  row["tile_tokens"] = kernel.tile_tokens;
  row["panel"] = kernel.panel;
  row["min_tokens"] = kernel.min_tokens;
  row["max_tokens"] = kernel.max_tokens;
  row["min_sparsity"] = kernel.min_sparsity;
  row["max_sparsity"] = kernel.max_sparsity;
  return row;
}
