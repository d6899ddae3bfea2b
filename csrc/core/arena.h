// Plans memory for values that come and go in a known order.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

namespace sparseinfer {

constexpr int64_t kLine = 16;  // floats of a cache line

// Free ranges of floats, in order; `take` throws std::bad_alloc beyond any memory.
class Arena {
 public:
  int64_t take(int64_t elements) {
    const int64_t rounded = (elements + kLine - 1) / kLine * kLine;
    for (size_t i = 0; i < free_.size(); ++i) {
      auto& [begin, end] = free_[i];
      if (end - begin < rounded) continue;
      const int64_t offset = begin;
      begin += rounded;
      if (begin == end) free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
      return offset;
    }
    // Behind everything, from the last free range on if that reaches the end.
    int64_t offset = size_;
    if (!free_.empty() && free_.back().second == size_) {
      offset = free_.back().first;
      free_.pop_back();
    }
    size_ = offset + rounded;
    if (size_ > kMaxArena) throw std::bad_alloc();
    return offset;
  }

  void give(int64_t offset, int64_t elements) {
    const int64_t end = offset + (elements + kLine - 1) / kLine * kLine;
    auto next = std::lower_bound(free_.begin(), free_.end(), std::make_pair(offset, end));
    next = free_.insert(next, {offset, end});
    if (next + 1 != free_.end() && next->second == (next + 1)->first) {
      next->second = (next + 1)->second;
      free_.erase(next + 1);
    }
    if (next != free_.begin() && (next - 1)->second == next->first) {
      (next - 1)->second = next->second;
      free_.erase(next);
    }
  }

  int64_t size() const { return size_; }

 private:
  static constexpr int64_t kMaxArena = int64_t{1} << 44;

  std::vector<std::pair<int64_t, int64_t>> free_;
  int64_t size_ = 0;
};

}  // namespace sparseinfer
