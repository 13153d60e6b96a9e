// Votes for one instruction set: a row at a time.
#include "../../common/element.h"
#include "../parallel.h"
#include "fastrobust/noise.h"

namespace fastrobust::cpu::FR_ISA {
namespace {

// The first largest of a row, or -1 where there is a NaN.
template <class S>
int64_t winner(const S* row, int64_t classes) {
  using Z = Compute<S>;
  int64_t best = 0;
  Z most = load<Z>(row[0]);
  bool odd = false;
  for (int64_t c = 0; c < classes; ++c) {
    const Z v = load<Z>(row[c]);
    odd |= v != v;
    if (v > most) best = c, most = v;
  }
  return odd ? -1 : best;
}

template <class S>
Status count(const AddVotes& a, int threads) {
  const S* logits = static_cast<const S*>(a.logits);
  in_team(
      team_for(threads, a.slots * a.classes), a.slots, [] { return 0; },
      [&](int, int64_t slot) {
        const int64_t image = a.image[slot], best = winner(logits + slot * a.classes, a.classes);
        if (best < 0 || image < 0 || image >= a.images) return;
        int64_t& votes = a.counts[image * a.classes + best];
#pragma omp atomic
        ++votes;
      });
  return Status::ok;
}

}  // namespace

Status add_votes(const AddVotes& a, int threads) {
  if (a.slots * a.classes == 0) return Status::ok;
  return with_type(a.dtype, [&](auto s) { return count<decltype(s)>(a, threads); });
}

}  // namespace fastrobust::cpu::FR_ISA
