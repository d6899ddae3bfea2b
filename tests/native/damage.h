// Packings as a broken caller might hand them over.
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "problem.h"
#include "sparseinfer/packings.h"

namespace native_tests {

using sparseinfer::PackingHeader;

// Changes one to three places of a packing: numbers become others at the edges of what is valid, bits flip, and
// elements change places, which keeps all counts. Every section has the same chance.
class Damage {
 public:
  Damage(char* blob, int64_t bytes, uint64_t seed) : blob_(blob), random_(seed) {
    std::memcpy(&h_, blob, sizeof h_);
    // The cells, and the row offsets of csr, are 8 bytes like those before them.
    std::vector<int64_t> starts{0,          h_.split_rows, h_.cells,  h_.counts,   h_.rows,
                                h_.offsets, h_.values,     h_.scales, h_.row_sums, bytes};
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    const bool overstated = h_.cells > 0 && random_.chance(0.2);
    if (overstated) overstate();
    for (int64_t places = overstated ? 0 : random_.between(1, 3); places > 0; --places) {
      const int64_t i = random_.below(static_cast<int64_t>(starts.size()) - 1);
      change(starts[static_cast<size_t>(i)], starts[static_cast<size_t>(i) + 1]);
    }
  }

 private:
  void change(int64_t first, int64_t last) {
    const int64_t size = int64_t{1} << random_.below(4), count = (last - first) / size;
    const int64_t at = first + size * random_.below(count), other = first + size * random_.below(count);
    switch (random_.below(3)) {
      case 0:
        return put(at, size, edge(get(at, size)));
      case 1:
        return put(at, size, get(at, size) ^ uint64_t{1} << random_.below(8 * size));
      default:
        const uint64_t here = get(at, size), there = get(other, size);
        put(at, size, there);
        put(other, size, here);
    }
  }

  uint64_t edge(uint64_t old) {
    const int64_t sizes[] = {h_.n, h_.k, h_.nnz, h_.splits, h_.bytes, h_.values};
    const uint64_t edges[] = {0,
                              ~uint64_t{0},
                              old - 1,
                              old + 1,
                              old + static_cast<uint64_t>(random_.between(-300, 300)),
                              2 * old,
                              0 - old,
                              uint64_t{1} << 31,
                              uint64_t{1} << 40,
                              uint64_t{1} << 63,
                              ~uint64_t{0} >> 1,
                              static_cast<uint64_t>(sizes[random_.below(6)])};
    return edges[random_.below(static_cast<int64_t>(std::size(edges)))];
  }

  // A cell that claims to end far behind its sections, and counts that rely on it.
  void overstate() {
    const int64_t cells = h_.splits * h_.panels + 1, cell = h_.cells + 32 * random_.between(1, cells - 1);
    for (int64_t field = 0; field < 4; ++field) {
      if (random_.chance(0.5)) put(cell + 8 * field, 8, uint64_t{1} << 40);
    }
    const int64_t end = h_.rows > h_.counts ? h_.rows : h_.offsets;
    for (int64_t counts = random_.between(0, 4); counts > 0 && end > h_.counts; --counts) {
      put(h_.counts + random_.below(end - h_.counts), 1, random_.next());
    }
  }

  uint64_t get(int64_t at, int64_t size) const {
    uint64_t value = 0;
    std::memcpy(&value, blob_ + at, static_cast<size_t>(size));
    return value;
  }
  void put(int64_t at, int64_t size, uint64_t value) { std::memcpy(blob_ + at, &value, static_cast<size_t>(size)); }

  char* blob_;
  Random random_;
  PackingHeader h_;
};

}  // namespace native_tests
