// Runs blocks of products: a pass of tokens through all of them on one thread, or, of few tokens, product by product.
#include "sparseinfer/block.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

#include "core/passes.h"
#include "sparseinfer/memory.h"
#include "sparseinfer/spmm.h"

namespace sparseinfer {
namespace {

// Passes for each thread from which on they take passes of their own.
constexpr int64_t kLeastPasses = 1;

// Tokens that are left over, or all where threads take no passes of their own: so many at a time.
constexpr int64_t kRestTokens = 1024;

// Rows that a thread normalizes at a time, at least.
constexpr int64_t kNormRows = 16;

struct Region {
  const Block* block;
  SpmmArgs last;  // of the tokens that are normalized
  std::atomic<bool> out_of_memory{false};
};

// [tokens][n] between the products of a block, of this thread.
char* hidden(const Block& block, int64_t tokens) {
  const SpmmArgs& args = block.first.args;
  return thread_scratch(ScratchSlot::kHidden, tokens * args.w->n * dtype_bytes(args.dtype));
}

// The arguments of both products for tokens [first, first + count), with what lies between them.
std::pair<SpmmArgs, SpmmArgs> args_of(const Block& block, int64_t first, int64_t count) {
  SpmmArgs one = tokens_of(block.first.args, first, count), two = tokens_of(block.last().args, first, count);
  if (block.has_two()) {
    one.y = hidden(block, count);
    one.ldy = one.w->n;
    two.x = one.y;
    two.ldx = one.ldy;
  }
  return {one, two};
}

// All rows of W for tokens that fit in one workspace, on this thread.
void run_pass(const SpmmKernel& kernel, SpmmArgs args) {
  args.alone = true;
  char* scratch = prepare_pass(kernel, args);
  kernel.run(args, 0, args.w->splits, scratch);
}

void run_passes(int64_t begin, int64_t end, void* ctx) {
  Region& region = *static_cast<Region*>(ctx);
  const Block& block = *region.block;
  try {
    for (int64_t pass = begin; pass < end; ++pass) {
      const auto [one, two] = args_of(block, pass * kPassTokens, kPassTokens);
      run_pass(*block.first.kernel, one);
      if (block.has_two()) run_pass(*block.second.kernel, two);
      if (block.norm != nullptr) block.last().kernel->norm_rows(two, *block.norm, 0, kPassTokens);
    }
  } catch (const std::bad_alloc&) {
    region.out_of_memory = true;
  }
}

void norm_range(int64_t begin, int64_t end, void* ctx) {
  const Region& region = *static_cast<Region*>(ctx);
  const Block& block = *region.block;
  const int64_t last = std::min(region.last.m, end * kNormRows);
  block.last().kernel->norm_rows(region.last, *block.norm, begin * kNormRows, last);
}

int64_t own_passes(const Block& block, Spread spread) {
  const int64_t passes = passes_of_threads(*block.first.kernel, block.first.args, spread, kLeastPasses);
  if (passes == 0 || !block.has_two()) return passes;
  return std::min(passes, passes_of_threads(*block.second.kernel, block.second.args, spread, kLeastPasses));
}

}  // namespace

void run_block(const Block& block, Spread spread) {
  const SpmmArgs& call = block.last().args;
  const int64_t tokens = call.m;
  if (tokens == 0 || call.w->n == 0) return;
  prefer_huge_pages(call.y, ((tokens - 1) * call.ldy + call.w->n) * dtype_bytes(call.dtype));
  const Spread products = worth(spread, block.first.args);
  Region region{&block, call};
  const int64_t passes = own_passes(block, products);
  if (passes > 0) {
    parallel_for(passes, products, run_passes, &region);
    if (region.out_of_memory) throw std::bad_alloc();
  }
  for (int64_t done = passes * kPassTokens; done < tokens; done += kRestTokens) {
    const auto [one, two] = args_of(block, done, std::min(kRestTokens, tokens - done));
    run_spmm(*block.first.kernel, one, spread);
    if (block.has_two()) run_spmm(*block.second.kernel, two, spread);
    if (block.norm == nullptr) continue;
    region.last = two;
    parallel_for((two.m + kNormRows - 1) / kNormRows, products, norm_range, &region);
  }
}

}  // namespace sparseinfer
