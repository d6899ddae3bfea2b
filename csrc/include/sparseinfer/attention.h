// softmax(scale * Q K^T + mask) V of several heads in fp32, without the matrix of scores: blocks of keys, for a few
// queries at a time, with a running maximum and sum (the online softmax of FlashAttention, Dao et al. 2022).
#pragma once

#include <stdint.h>

#include "sparseinfer/parallel.h"

namespace sparseinfer {

enum class MaskKind { kNone, kAdded, kKept };  // fp32 that is added to the scores; bytes, of which 0 leaves a key out

// Strides in elements; the last dimension of everything is contiguous.
struct HeadStrides {
  int64_t batch, head, token;
};

// A query of which every score is -inf gets zeros. NaN and infinity spread as in the formula, over all keys.
struct AttentionArgs {
  const float *q, *k, *v;  // [batch, heads, queries or keys, dim]
  float* y;                // [batch, heads, queries, dim]; overlaps no input
  const void* mask;        // [batch, heads, queries, keys], as `kind` says
  HeadStrides q_strides, k_strides, v_strides, y_strides, mask_strides;
  MaskKind kind;
  int64_t batch, heads, queries, keys, dim;
  float scale;
};

struct AttentionOps {
  // Memory of one thread.
  int64_t (*scratch_bytes)(const AttentionArgs&);
  // Queries [begin, end) of head `head` of image or sentence `batch`. Every element of y is computed alike, whatever
  // the range.
  void (*run)(const AttentionArgs&, int64_t batch, int64_t head, int64_t begin, int64_t end, char* scratch);
};

// std::bad_alloc, and as parallel_for.
void run_attention(const AttentionArgs& args, Spread spread);

}  // namespace sparseinfer
