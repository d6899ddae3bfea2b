// Converts CSR or BSR to any packing: checks the input, divides rows into splits, and joins the streams of all splits
// to one blob.
#include "sparseinfer/pack.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "packings/packing.h"
#include "sparseinfer/halves.h"
#include "sparseinfer/memory.h"
#include "sparseinfer/parallel.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/row_split.h"

namespace sparseinfer {

int64_t l1_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return int64_t{32} << 10;
}

namespace {

std::vector<int64_t> row_bounds(const SparseView& w, const Packing& packing, const PackingHeader& h,
                                int64_t max_splits) {
  const int64_t multiple = packing.row_multiple(h);
  std::vector<int64_t> work(static_cast<size_t>((w.n + multiple - 1) / multiple));
  for (size_t g = 0; g < work.size(); ++g) {
    const int64_t begin = static_cast<int64_t>(g) * multiple, end = std::min(w.n, begin + multiple);
    work[g] = 8 * multiple;  // a row costs its epilogue even when it is empty; 8: chosen, not measured
    for (int64_t r = begin; r < end; ++r) work[g] += w.crow[r / w.block_rows + 1] - w.crow[r / w.block_rows];
  }
  std::vector<int64_t> bounds =
      split_rows(work, max_splits, std::max<int64_t>(1, packing.min_rows(h) / multiple), kMaxSplitRows / multiple);
  for (int64_t& b : bounds) b = std::min(w.n, b * multiple);
  return bounds;
}

PackingHeader make_header(PackingKind kind, const SparseView& w, DType dtype, Storage storage) {
  PackingHeader h{};
  h.magic = kPackingMagic;
  h.kind = kind;
  h.dtype = dtype;
  h.storage = storage;
  h.n = w.n;
  h.k = w.k;
  h.nnz = w.nnz;
  h.block_rows = w.block_rows;
  h.block_cols = w.block_cols;
  return h;
}

struct PackJob {
  const PackingHeader* header;
  const SparseView* view;
  PackSplit pack_split;
  const std::vector<int64_t>* bounds;
  std::vector<SplitStreams>* streams;
  std::atomic<bool> out_of_memory{false};
};

void pack_range(int64_t begin, int64_t end, void* ctx) {
  auto& job = *static_cast<PackJob*>(ctx);
  try {
    for (int64_t s = begin; s < end; ++s) {
      const auto i = static_cast<size_t>(s);
      job.pack_split(*job.header, *job.view, (*job.bounds)[i], (*job.bounds)[i + 1], (*job.streams)[i]);
    }
  } catch (const std::bad_alloc&) {
    job.out_of_memory = true;
  }
}

// Where each split's streams lie in the finished blob, in bytes of each section.
struct CopyJob {
  const Blob* blob;
  const PackingHeader* header;
  std::vector<SplitStreams>* streams;
  const std::vector<Cell>* starts;
};

void copy_range(int64_t begin, int64_t end, void* ctx) {
  auto& job = *static_cast<CopyJob*>(ctx);
  for (int64_t s = begin; s < end; ++s) {
    SplitStreams& from = (*job.streams)[static_cast<size_t>(s)];
    const Cell& to = (*job.starts)[static_cast<size_t>(s)];
    const PackingHeader& h = *job.header;
    write(*job.blob, h.counts + to.counts, from.counts.data(), static_cast<size_t>(from.counts.size()));
    write(*job.blob, h.rows + to.rows, from.rows.data(), static_cast<size_t>(from.rows.size()));
    write(*job.blob, h.offsets + to.offsets, from.offsets.data(), static_cast<size_t>(from.offsets.size()));
    write(*job.blob, h.values + to.values, from.values.data(), static_cast<size_t>(from.values.size()));
    from = SplitStreams{};
  }
}

struct WidenJob {
  const SparseView* view;
  float* out;
};

void widen_range(int64_t begin, int64_t end, void* ctx) {
  const auto& job = *static_cast<WidenJob*>(ctx);
  constexpr int64_t kStep = 1 << 16;
  with_type(job.view->dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(job.view->values);
    for (int64_t i = begin * kStep; i < std::min(job.view->nnz, end * kStep); ++i) job.out[i] = widen(values[i]);
  });
}

void check_view(PackingKind kind, const SparseView& w, Storage storage) {
  if (!storage_holds(storage, w.dtype)) {
    throw std::invalid_argument(std::string("storage: expected one that holds ") + name_of(w.dtype) +
                                " values exactly, got " + name_of(storage));
  }
  if (!has_kernels(kind, storage)) {
    throw std::invalid_argument(std::string("storage: expected one that packing ") + name_of(kind) +
                                " has kernels for, got " + name_of(storage));
  }
  const int64_t limit = std::numeric_limits<int32_t>::max();
  if (w.n < 0 || w.k < 0 || w.n > limit || w.k > limit)
    throw std::invalid_argument("shape: expected sizes in [0, 2**31)");
  const bool blocks = takes_blocks(kind);
  if (w.block_rows < 1 || w.block_cols < 1 || (!blocks && w.block_rows * w.block_cols != 1)) {
    throw std::invalid_argument(std::string("packing ") + name_of(kind) + ": expected a csr format, got blocks");
  }
  if (w.n % w.block_rows != 0 || w.k % w.block_cols != 0)
    throw std::invalid_argument("block_size: expected one that divides the shape");
  const int64_t together = block_columns(kind, storage);
  if (blocks && w.block_cols % together != 0) {
    throw std::invalid_argument("block_size: expected a number of columns divisible by " + std::to_string(together) +
                                " for storage " + name_of(storage) + ", got " + std::to_string(w.block_cols));
  }
  if (w.block_rows % block_rows(kind) != 0) {
    throw std::invalid_argument("block_size: expected a number of rows divisible by " +
                                std::to_string(block_rows(kind)) + " for packing " + name_of(kind) + ", got " +
                                std::to_string(w.block_rows));
  }
  check_compressed(w.crow, w.col, w.n / w.block_rows, w.k / w.block_cols, w.nnz / (w.block_rows * w.block_cols));
  if (w.dtype == DType::kI8) check_scales(w);
}

// The streams of all splits, end to end.
struct Laid {
  std::vector<Cell> cells;   // [splits * panels + 1] in elements of each section
  std::vector<Cell> starts;  // [splits] in bytes of each section
  Cell bytes;                // of each section
};

Laid laid_end_to_end(const std::vector<SplitStreams>& streams, const CellPacking& cells, int64_t value_bytes) {
  Laid laid{};
  auto elements = [&](const Cell& bytes) {
    return Cell{bytes.values / value_bytes, bytes.offsets / cells.offset_bytes, bytes.counts / cells.count_bytes,
                bytes.rows / cells.row_bytes};
  };
  Cell& at = laid.bytes;
  for (const SplitStreams& s : streams) {
    const Cell start = elements(at);
    for (const Cell& c : s.cells) {
      laid.cells.push_back(
          {start.values + c.values, start.offsets + c.offsets, start.counts + c.counts, start.rows + c.rows});
    }
    laid.starts.push_back(at);
    at.values += s.values.size();
    at.offsets += s.offsets.size();
    at.counts += s.counts.size();
    at.rows += s.rows.size();
  }
  laid.cells.push_back(elements(at));
  return laid;
}

}  // namespace

Blob::Blob(int64_t bytes) : data_(nullptr), size_(bytes) {
  // Weights are read from end to end at every call.
  const bool huge = bytes >= 2 * kHugePage;
  const auto alignment = static_cast<size_t>(huge ? kHugePage : kPackingAlign);
  const size_t rounded = (static_cast<size_t>(std::max<int64_t>(1, bytes)) + alignment - 1) / alignment * alignment;
  data_ = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  if (data_ == nullptr) throw std::bad_alloc();
  prefer_huge_pages(data_, static_cast<int64_t>(rounded));
  std::memset(data_, 0, static_cast<size_t>(bytes));
}
Blob::~Blob() { std::free(data_); }
Blob::Blob(Blob&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }

Blob pack_cells(const Packing& packing, const PackInput& input) {
  const SparseView& w = input.w;
  const CellPacking& kind = *packing.cells;
  PackingHeader h = input.h;
  h.panel = input.options.panel > 0 ? input.options.panel : kind.panel(h);
  const int64_t widest = kind.widest_panel != nullptr ? kind.widest_panel(h) : all_columns(h);
  if (h.panel > widest || h.panel % w.block_cols != 0) {
    throw std::invalid_argument("panel: expected at most " + std::to_string(widest) + " columns in whole blocks, got " +
                                std::to_string(h.panel));
  }
  h.panels = (w.k + h.panel - 1) / h.panel;

  std::vector<SplitStreams> streams(static_cast<size_t>(h.splits));
  const int64_t value_bytes = payload_bytes(h.storage);
  PackJob job{&h, &w, kind.pack_split[payload_size(h.storage)], &input.bounds, &streams};
  parallel_for(h.splits, Spread::pool(), pack_range, &job);
  if (job.out_of_memory) throw std::bad_alloc();
  const Laid laid = laid_end_to_end(streams, kind, value_bytes);

  SectionPlaces places;
  h.units = laid.cells.back().offsets;
  h.split_rows = places.add(static_cast<int64_t>(input.bounds.size()) * 8);
  h.cells = places.add(static_cast<int64_t>(laid.cells.size() * sizeof(Cell)));
  h.counts = places.add(laid.bytes.counts);
  h.rows = places.add(laid.bytes.rows);
  h.offsets = places.add(laid.bytes.offsets);
  h.values = places.add(laid.bytes.values + kValuesSlack);
  if (w.dtype == DType::kI8) h.scales = places.add(w.n * 4);
  if (h.storage == Storage::kI8) h.row_sums = places.add(w.n * 4);
  h.bytes = places.size();
  Blob blob(h.bytes);
  write(blob, 0, &h, 1);
  write(blob, h.split_rows, input.bounds.data(), input.bounds.size());
  write(blob, h.cells, laid.cells.data(), laid.cells.size());
  if (h.scales != 0) write(blob, h.scales, w.scales, static_cast<size_t>(w.n));
  if (h.row_sums != 0) write(blob, h.row_sums, row_sums(w).data(), static_cast<size_t>(w.n));
  CopyJob copy{&blob, &h, &streams, &laid.starts};
  parallel_for(h.splits, Spread::pool(), copy_range, &copy);
  return blob;
}

Blob pack(PackingKind kind, const SparseView& given, const PackOptions& options) {
  check_view(kind, given, options.storage);
  SparseView w = given;
  std::vector<float> widened;
  if (options.storage == Storage::kF32 && given.dtype != DType::kF32) {
    widened.resize(static_cast<size_t>(given.nnz));
    WidenJob job{&given, widened.data()};
    parallel_for((given.nnz >> 16) + 1, Spread::pool(), widen_range, &job);
    w.values = widened.data();
  }
  const Packing& packing = packing_of(kind);
  if (options.panel > 0 && options.panel != w.k && !has_panels(kind)) {
    throw std::invalid_argument(std::string("panel: expected 0 for packing ") + name_of(kind) +
                                ", whose one panel holds all columns, got " + std::to_string(options.panel));
  }
  PackingHeader h = make_header(kind, w, given.dtype, options.storage);
  if (packing.cells != nullptr && packing.cells->choose != nullptr) packing.cells->choose(w, options.isa, h);
  const std::vector<int64_t> bounds = row_bounds(w, packing, h, std::max<int64_t>(1, options.max_splits));
  h.splits = static_cast<int64_t>(bounds.size()) - 1;
  return packing.pack(packing, {w, h, bounds, options});
}

const Packing& packing_of(PackingKind kind) {
#define SI_PACKING(number, name) &name##_packing,
  static constexpr const Packing* kTable[] = {SI_PACKINGS(SI_PACKING)};
#undef SI_PACKING
  return *kTable[static_cast<int>(kind)];
}

const char* packing_format(PackingKind kind) { return packing_of(kind).format; }

int64_t block_rows(PackingKind kind) { return packing_of(kind).block_rows; }

int64_t block_columns(PackingKind kind, Storage storage) {
  return packing_of(kind).pads_steps ? 1 : columns_per_step(storage);
}

bool has_panels(PackingKind kind) {
  const CellPacking* cells = packing_of(kind).cells;
  return cells != nullptr && cells->widest_panel != nullptr;
}

}  // namespace sparseinfer
