// The interface of a CPU kernel: plain functions over a range of work, without threads, allocation or the C++ library.
#pragma once

#include <stdint.h>

#include "sparseinfer/conv.h"
#include "sparseinfer/dtypes.h"
#include "sparseinfer/packings.h"

namespace sparseinfer {

// How x of storage i8 is rounded to bytes q: x = scale * (q - zero), q and zero in [0, 255].
struct TokenScale {
  float scale;
  int32_t zero;
};

// The least and the largest of some values and 0; `odd` is NaN where one of them is NaN or not finite, else 0.
struct ValueRange {
  float least, most, odd;
};

// Bytes before and behind images of bytes that may be read.
constexpr int64_t kImageMargin = 128;

// y[m, n] = activation(x[m, k] . W[n, k]^T + bias[n])
struct SpmmArgs {
  const void* x;           // [m, k], dtype, row stride ldx elements, last dimension contiguous
  void* y;                 // [m, n], dtype, row stride ldy elements
  const void* bias;        // [n], bias_dtype, nullable
  const PackingHeader* w;  // validated by check_packing
  int64_t m, ldx, ldy;
  DType dtype;       // of x and y; storage bf16 rounds fp32 x to it, and takes no other but bf16
  DType bias_dtype;  // fp32 or dtype
  Activation activation;
  char* workspace;  // `workspace_bytes`, shared by all threads that work on the same tokens

  // Nullable; then ldx and ldy say nothing: x and y lie as `conv` says, and the m tokens are pixels of the output from
  // `first_token` on.
  const ConvShape* conv;
  // Of convolutions, nullable: y = activation(factors[n] * sum + bias[n] + residual), where residual is one image like
  // y with channels `residual_plane` elements apart.
  const float* factors;
  const void* residual;
  int64_t residual_plane;
  bool padded;  // x is one image, behind which a tile of tokens may be read: some kernels then read it where it lies
  int64_t first_token;  // of the whole call; x and y are those of this token where there is no convolution

  // The images of storage i8: x rounded to bytes beforehand, as `conv` says, and the scale of each image.
  uint8_t* bytes;            // behind kImageMargin bytes, and before as many
  TokenScale* image_scales;  // [conv->batch]

  bool alone;  // one call of `run` has all rows: what it needs of x may be repacked as it goes, and stay in L1
};

// Layer normalization of the rows of y after an addition: s = y + residual, then
// y = (s - mean(s)) / sqrt(variance(s) + eps) * weight + bias.
struct RowNorm {
  const void* residual;  // [m, n], dtype of y, row stride ld elements; no part of it is in y
  int64_t ld;
  const void* weight;  // [n], dtype, nullable
  const void* bias;    // the same
  DType dtype;         // fp32 or that of y
  double eps;
};

struct SpmmKernel {
  const char* name;     // spmm_{packing}_{storage}_{tile}__{isa}: symbol, log name, test id and bench row
  const char* packing;  // name of the packing it reads
  const char* storage;  // name of the storage it reads; "bf16" takes bf16 activations only
  const char* tile;
  const char* isa;
  bool takes_conv;
  bool tiles;   // multiplies on tiles of matrices
  bool native;  // false: the level has no instruction for the storage's arithmetic and computes it by others

  // The calls and the weights it is meant for, and where plans may change (cpu/kernels.inc).
  int64_t min_tokens, bucket_tokens, max_tokens;
  double min_sparsity, max_sparsity;
  int64_t wide_panel;

  // Tokens that are computed together: calls for whole tiles give the same bits as one call for all tokens. 0: tokens
  // are not cut into tiles, and there may be no such number.
  int64_t tile_tokens;

  // Nullable: kernels that read images as bytes. x is rounded image by image, in two steps of one piece for each
  // channel of each image, which may run in any order on any thread. Pieces write nothing but their own bytes.
  void (*find_ranges)(const SpmmArgs&, ValueRange* ranges, int64_t begin, int64_t end);
  void (*round_images)(const SpmmArgs&, const ValueRange* ranges, int64_t begin, int64_t end);

  int64_t (*workspace_bytes)(const SpmmArgs&);
  int64_t (*scratch_bytes)(const SpmmArgs&);  // per thread

  // Fills the workspace; `prepare_items` pieces that may run in any order on any thread. 0 items: nothing to do.
  int64_t (*prepare_items)(const SpmmArgs&);
  void (*prepare)(const SpmmArgs&, int64_t begin, int64_t end);

  // Computes the rows of splits [begin, end) for all m tokens. Every y element is written by exactly one split, and
  // summed in an order that does not depend on begin and end.
  void (*run)(const SpmmArgs&, int64_t begin, int64_t end, char* scratch);

  // Normalizes rows [begin, end) of y in place, after all splits have run; not of convolutions. Rows may be normalized
  // in any order on any thread.
  void (*norm_rows)(const SpmmArgs&, const RowNorm&, int64_t begin, int64_t end);
};

}  // namespace sparseinfer
