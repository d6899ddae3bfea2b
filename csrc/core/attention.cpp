// Runs attention on torch's threads: one head of one sentence at a time, or some of its queries where heads are few.
#include "sparseinfer/attention.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "sparseinfer/registry.h"

namespace sparseinfer {
namespace {

// Fewer multiplications than so many are done by one thread. Chosen, not measured.
constexpr double kSerialWork = 1 << 18;

// Queries that share a transposed K, at least, and pieces for each thread where heads are cut.
constexpr int64_t kLeastQueries = 96, kPieces = 4;

struct Region {
  const AttentionArgs* args;
  const AttentionOps* ops;
  int64_t cuts;  // of each head
  std::atomic<bool> out_of_memory{false};
};

void run_pieces(int64_t begin, int64_t end, void* ctx) {
  Region& region = *static_cast<Region*>(ctx);
  const AttentionArgs& a = *region.args;
  try {
    char* scratch = thread_scratch(ScratchSlot::kThread, region.ops->scratch_bytes(a));
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t head = piece / region.cuts, cut = piece % region.cuts;
      region.ops->run(a, head / a.heads, head % a.heads, a.queries * cut / region.cuts,
                      a.queries * (cut + 1) / region.cuts, scratch);
    }
  } catch (const std::bad_alloc&) {
    region.out_of_memory = true;
  }
}

}  // namespace

void run_attention(const AttentionArgs& a, Spread spread) {
  const int64_t heads = a.batch * a.heads;
  if (heads == 0 || a.queries == 0 || a.dim == 0) return;
  const double work = 2.0 * static_cast<double>(heads) * static_cast<double>(a.queries) * static_cast<double>(a.keys) *
                      static_cast<double>(a.dim);
  if (spread.parts == 0 && work < kSerialWork) spread = Spread::serial();
  const int64_t wanted = (kPieces * num_ranges(spread) + heads - 1) / heads;
  Region region{&a, &attention_ops(active_isa()), std::max<int64_t>(1, std::min(wanted, a.queries / kLeastQueries))};
  parallel_for(heads * region.cuts, spread, run_pieces, &region);
  if (region.out_of_memory) throw std::bad_alloc();
}

}  // namespace sparseinfer
