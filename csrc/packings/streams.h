// Helpers to build packings: sections are placed one after another in a blob. For packings of cells each split first
// appends to its own streams, on any thread.
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
  // Room for `count` more, zeros, to be written by the caller.
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

// Gives sections their byte offsets, one after another behind the header.
class SectionPlaces {
 public:
  int64_t add(int64_t bytes) {
    const int64_t offset = size_;
    size_ = aligned(size_ + bytes);
    return offset;
  }
  int64_t size() const { return size_; }

 private:
  static int64_t aligned(int64_t bytes) { return (bytes + kPackingAlign - 1) / kPackingAlign * kPackingAlign; }
  int64_t size_ = aligned(sizeof(PackingHeader));
};

template <class T>
void write(const Blob& blob, int64_t offset, const T* data, size_t count) {
  if (count > 0) std::memcpy(blob.data() + offset, data, count * sizeof(T));
}

}  // namespace sparseinfer
