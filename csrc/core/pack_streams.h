// How the cell-based packings are built: each split appends to its own streams, then all splits are laid end to end.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "sparseinfer/pack.h"

namespace sparseinfer {

// Elements of one section, appended in bulk.
template <class T>
class Stream {
 public:
  // Room for `count` more, to be written by the caller.
  T* extend(int64_t count) {
    const size_t at = data_.size();
    data_.resize(at + static_cast<size_t>(count));
    return data_.data() + at;
  }
  void push(T value) { data_.push_back(value); }
  int64_t size() const { return static_cast<int64_t>(data_.size()); }
  int64_t bytes() const { return size() * static_cast<int64_t>(sizeof(T)); }
  const T* data() const { return data_.data(); }

 private:
  std::vector<T> data_;
};

// Raw bytes for sections whose element differs between packings; positions in cells count elements.
struct SplitStreams {
  Stream<char> values, offsets, counts, rows;
  std::vector<Cell> cells;  // start of each panel, relative to this split

  template <class T>
  static T* extend(Stream<char>& stream, int64_t count) {
    return reinterpret_cast<T*>(stream.extend(count * static_cast<int64_t>(sizeof(T))));
  }
  template <class T>
  static int64_t count(const Stream<char>& stream) {
    return stream.bytes() / static_cast<int64_t>(sizeof(T));
  }
};

// Appends rows [begin, end) to `out`, panel by panel. `h` holds the sizes (n, k, panel, panels, block, window, steps);
// Payload is uint32_t or uint16_t, as wide as the values of `w`.
using PackSplit = void (*)(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
template <class Payload>
void pack_rowgroup_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
template <class Payload>
void pack_rowlist_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
template <class Payload>
void pack_sell_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
template <class Payload>
void pack_bitmap_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);
template <class Payload>
void pack_bsr_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out);

// Sets the window and steps under which sell is expected to be fastest at a level, from a sample of the rows.
void choose_sell_window(const SparseView& w, Isa isa, PackingHeader& h);

}  // namespace sparseinfer
