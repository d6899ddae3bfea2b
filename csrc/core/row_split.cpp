// Divides rows into a given number of splits of about equal work.
#include "sparseinfer/row_split.h"

#include <algorithm>

namespace sparseinfer {

std::vector<int64_t> split_rows(const std::vector<int64_t>& work, int64_t max_splits, int64_t min_groups,
                                int64_t max_groups) {
  const int64_t groups = static_cast<int64_t>(work.size());
  int64_t total = 0;
  for (int64_t w : work) total += w;
  int64_t splits = std::max<int64_t>(1, std::min(max_splits, groups / std::max<int64_t>(1, min_groups)));
  splits = std::max(splits, (groups + max_groups - 1) / max_groups);

  std::vector<int64_t> bounds{0};
  int64_t done = 0, target_base = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t used = g - bounds.back();
    const int64_t next = static_cast<int64_t>(bounds.size());
    // Close the split before this group when it is full, or when it holds its share and the group would overshoot more
    // than stopping here undershoots.
    const double share =
        static_cast<double>(total - target_base) / static_cast<double>(std::max<int64_t>(1, splits - next + 1));
    const bool holds_share = static_cast<double>(done) + 0.5 * static_cast<double>(work[g]) > share;
    if (used > 0 && (used >= max_groups || (holds_share && next < splits && used >= std::min(min_groups, groups)))) {
      bounds.push_back(g);
      target_base += done;
      done = 0;
    }
    done += work[g];
  }
  if (groups > 0) bounds.push_back(groups);
  return bounds;
}

}  // namespace sparseinfer
