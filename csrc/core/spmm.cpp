// Computes one product: repacks x, loops over passes of tokens, and distributes work to threads.
#include "sparseinfer/spmm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "core/passes.h"
#include "sparseinfer/memory.h"

namespace sparseinfer {
namespace {

// The repacked x of one pass; 16 MB keeps it in a server's last-level cache and holds 1024 tokens of 4096 columns.
constexpr int64_t kMaxWorkspace = int64_t{16} << 20;

// There are two ways to share work. Threads may split the rows of W over one repacked x, which is written to and read
// from the last-level cache by all of them. Or each takes tokens of its own and multiplies all rows by them, and its x
// never leaves its L2. At 64 rows of density 0.2, usual in convolutions, an element of x is multiplied 13 times, 0.4
// cycles of two cores with vectors of 16, and its 6 bytes a core come and go in 0.23 (98 GB/s at 3.7 GHz on Zen 4). The
// second way is taken for as many tokens as come out even, this many tiles a thread or more, and the rest goes the
// first way. Linear layers have more rows, so x matters less.
constexpr int64_t kOwnTilesConv = 2, kOwnTiles = 4;

struct Region {
  const SpmmKernel* kernel;
  const SpmmArgs* args;
  const std::vector<OutputPart>* parts;
  std::atomic<bool> out_of_memory{false};
};

// From the first element of y to behind the last.
int64_t y_bytes(const SpmmArgs& args) {
  const int64_t rows = args.conv != nullptr ? args.conv->batch - 1 : args.m - 1;
  const int64_t last = args.conv != nullptr ? args.w->n * args.conv->y_plane : args.w->n;
  const int64_t step = args.conv != nullptr ? args.conv->y_image : args.ldy;
  return (rows * step + last) * dtype_bytes(args.dtype);
}

// `bytes` before `p`, which may lie before the memory that p points into: nothing is read or written there.
void* before(void* p, int64_t bytes) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(p) - static_cast<uintptr_t>(bytes));
}

// One split whose rows belong to several parts: computed beside them, then copied.
void run_straddling(const SpmmKernel& kernel, SpmmArgs args, const std::vector<OutputPart>& parts, size_t first,
                    int64_t split, char* scratch) {
  const int64_t* split_rows = section<int64_t>(args.w, args.w->split_rows);
  const int64_t row = split_rows[split], end = split_rows[split + 1], bytes = dtype_bytes(args.dtype);
  char* sums = thread_scratch(ScratchSlot::kStraddling, args.m * (end - row) * bytes);
  args.y = before(sums, row * bytes);
  args.ldy = end - row;
  kernel.run(args, split, split + 1, scratch);
  for (size_t p = first; p < parts.size() && parts[p].row < end; ++p) {
    const OutputPart& part = parts[p];
    if (part.y == nullptr) continue;
    const int64_t from = std::max(row, part.row), to = std::min(end, part.row + part.rows);
    for (int64_t token = 0; token < args.m; ++token) {
      const int64_t at = (args.first_token + token) * part.rows + from - part.row;
      std::memcpy(static_cast<char*>(part.y) + at * bytes, sums + (token * (end - row) + from - row) * bytes,
                  static_cast<size_t>((to - from) * bytes));
    }
  }
}

// The rows of splits [begin, end), wherever their results lie.
void run_splits(const SpmmKernel& kernel, const SpmmArgs& args, const std::vector<OutputPart>& parts, int64_t begin,
                int64_t end, char* scratch) {
  if (parts.empty()) return kernel.run(args, begin, end, scratch);
  const int64_t* split_rows = section<int64_t>(args.w, args.w->split_rows);
  size_t p = 0;
  for (int64_t split = begin; split < end;) {
    while (parts[p].row + parts[p].rows <= split_rows[split]) ++p;
    const OutputPart& part = parts[p];
    int64_t stop = split;
    while (stop < end && split_rows[stop + 1] <= part.row + part.rows) ++stop;
    if (stop == split) {
      run_straddling(kernel, args, parts, p, split, scratch);
      ++split;
      continue;
    }
    const int64_t first = split;
    split = stop;
    if (part.y == nullptr) continue;
    SpmmArgs part_args = args;
    part_args.y = before(part.y, (part.row - args.first_token * part.rows) * dtype_bytes(args.dtype));
    part_args.ldy = part.rows;
    kernel.run(part_args, first, stop, scratch);
  }
}

void prepare_range(int64_t begin, int64_t end, void* ctx) {
  const Region& region = *static_cast<Region*>(ctx);
  region.kernel->prepare(*region.args, begin, end);
}

void run_range(int64_t begin, int64_t end, void* ctx) {
  Region& region = *static_cast<Region*>(ctx);
  try {
    char* scratch = thread_scratch(ScratchSlot::kThread, region.kernel->scratch_bytes(*region.args));
    run_splits(*region.kernel, *region.args, *region.parts, begin, end, scratch);
  } catch (const std::bad_alloc&) {
    region.out_of_memory = true;
  }
}

// Passes [begin, end) from repacking x to y.
void run_passes(int64_t begin, int64_t end, void* ctx) {
  Region& region = *static_cast<Region*>(ctx);
  const SpmmKernel& kernel = *region.kernel;
  try {
    for (int64_t pass = begin; pass < end; ++pass) {
      SpmmArgs args = tokens_of(*region.args, pass * kPassTokens, kPassTokens);
      args.alone = region.parts->empty();
      char* scratch = prepare_pass(kernel, args);
      run_splits(kernel, args, *region.parts, 0, args.w->splits, scratch);
    }
  } catch (const std::bad_alloc&) {
    region.out_of_memory = true;
  }
}

}  // namespace

SpmmArgs tokens_of(SpmmArgs args, int64_t first, int64_t count) {
  args.m = count;
  args.first_token += first;
  if (args.conv == nullptr) {
    args.x = static_cast<const char*>(args.x) + first * args.ldx * dtype_bytes(args.dtype);
    if (args.y != nullptr) args.y = static_cast<char*>(args.y) + first * args.ldy * dtype_bytes(args.dtype);
  }
  return args;
}

Spread worth(Spread spread, const SpmmArgs& args) {
  // Below this a parallel region costs more than a second core saves: 2 us where torch's threads still wait actively
  // for the next one (Zen 5), 5-12 where they sleep. In multiply-adds; a weight that is read costs as much as two.
  // These take a core 5 to 10 us, of one token and of many.
  constexpr double kSerialWork = 4.5e5, kReading = 2;
  const double m = static_cast<double>(args.m);
  const double work = (m + kReading) * static_cast<double>(args.w->nnz) + m * static_cast<double>(args.w->n);
  return spread.parts == 0 && work < kSerialWork ? Spread::serial() : spread;
}

char* prepare_pass(const SpmmKernel& kernel, SpmmArgs& args) {
  args.workspace = thread_scratch(ScratchSlot::kWorkspace, kernel.workspace_bytes(args));
  char* scratch = thread_scratch(ScratchSlot::kThread, kernel.scratch_bytes(args));
  kernel.prepare(args, 0, kernel.prepare_items(args));
  return scratch;
}

int64_t pass_bytes(const SpmmKernel& kernel, const SpmmArgs& args) {
  return std::max<int64_t>(1, kernel.workspace_bytes(tokens_of(args, 0, std::min(args.m, kPassTokens))));
}

int64_t passes_of_threads(const SpmmKernel& kernel, const SpmmArgs& args, Spread spread, int64_t least) {
  constexpr int64_t kMaxOwnWorkspace = int64_t{4} << 20;  // beyond it no L2 holds the tile, and every thread keeps one
  const bool cut_alike = kernel.tile_tokens > 0 && kPassTokens % kernel.tile_tokens == 0;
  if (!cut_alike || pass_bytes(kernel, args) > kMaxOwnWorkspace) return 0;
  const int64_t ranges = num_ranges(spread), per_range = args.m / kPassTokens / ranges;
  return per_range >= least ? per_range * ranges : 0;
}

void run_spmm(const SpmmKernel& kernel, const SpmmArgs& call, Spread spread, const std::vector<OutputPart>& parts) {
  const int64_t tokens = call.m;
  if (tokens == 0 || call.w->n == 0) return;
  // y has just been allocated, and large ones come straight from the system.
  if (parts.empty()) prefer_huge_pages(call.y, y_bytes(call));
  for (const OutputPart& part : parts) {
    if (part.y != nullptr) prefer_huge_pages(part.y, call.m * part.rows * dtype_bytes(call.dtype));
  }
  spread = worth(spread, call);

  const int64_t thread_passes =
      passes_of_threads(kernel, call, spread, call.conv != nullptr ? kOwnTilesConv : kOwnTiles);
  if (thread_passes > 0) {
    Region region{&kernel, &call, &parts};
    parallel_for(thread_passes, spread, run_passes, &region);
    if (region.out_of_memory) throw std::bad_alloc();
  }

  const int64_t pass = kPassTokens * std::max<int64_t>(1, kMaxWorkspace / pass_bytes(kernel, call));
  for (int64_t done = thread_passes * kPassTokens; done < tokens; done += pass) {
    SpmmArgs args = tokens_of(call, done, std::min(pass, tokens - done));
    args.alone = parts.empty() && num_ranges(spread) == 1;
    args.workspace = thread_scratch(ScratchSlot::kWorkspace, kernel.workspace_bytes(args));
    Region region{&kernel, &args, &parts};
    const bool small = spread.parts == 0 && args.m * args.w->k < kSerialPrepare;
    parallel_for(kernel.prepare_items(args), small ? Spread::serial() : spread, prepare_range, &region);
    parallel_for(args.w->splits, spread, run_range, &region);
    if (region.out_of_memory) throw std::bad_alloc();
  }
}

}  // namespace sparseinfer
