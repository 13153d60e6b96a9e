// Linf: every coordinate on its own.
#pragma once
#include "math.h"

namespace fastrobust {

// x_adv + step * sign(g), clipped to [x - eps, x + eps] and to [lo, hi]. A zero, infinite or NaN g moves nothing. The
// ball's ends are rounded inwards, so that |out - x| <= eps holds in real arithmetic.
template <class T, class G>
FR_HD T linf_step(T x_adv, T x, G g, T step, T eps, T lo, T hi) {
  const G limit = std::numeric_limits<G>::max();
  T move = (g > G(0)) & (g <= limit) ? step : T(0);
  move = (g < G(0)) & (g >= -limit) ? -step : move;
  const T inside = clip(x_adv + move, add_up(x, -eps), add_down(x, eps));
  return clip(inside, lo, hi);
}

template <class T>
FR_HD T linf_project(T x_adv, T x, T eps, T lo, T hi) {
  return clip(clip(x_adv, add_up(x, -eps), add_down(x, eps)), lo, hi);
}

}  // namespace fastrobust
