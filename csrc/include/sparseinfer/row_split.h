// Divides rows into ranges of about equal work (splits), the unit of work of threads.
#pragma once

#include <stdint.h>

#include <vector>

namespace sparseinfer {

// `work[i]` is the cost of row group i. Returns group boundaries, first 0 and last work.size(), at least one group a
// split, at most `max_splits` splits of at least `min_groups` groups where that is possible.
std::vector<int64_t> split_rows(const std::vector<int64_t>& work, int64_t max_splits, int64_t min_groups,
                                int64_t max_groups);

}  // namespace sparseinfer
