// Linf: every coordinate on its own.
#pragma once
#include "fastrobust/perturb.h"
#include "rounding.h"

namespace fastrobust {

// v clipped to [x - eps, x + eps] and to [lo, hi]. The ball's ends are rounded inwards, so that |out - x| <= eps holds
// in real arithmetic.
template <class Rounding = ByError, class T>
FR_HD T linf_project(T v, T x, T eps, T lo, T hi) {
  return clip(clip(v, -Rounding::add(eps, -x), Rounding::add(x, eps)), lo, hi);
}

// x_adv + step * sign(g), rounded towards x_adv, and projected. A zero, infinite or NaN g moves nothing. Rounded this
// way, steps to and fro soon repeat the same numbers, so that an attack can see that it goes in circles; rounded down,
// each round would end a little lower.
template <class Rounding = ByError, class T, class G>
FR_HD T linf_step(T x_adv, T x, G g, T step, T eps, T lo, T hi) {
  const G limit = std::numeric_limits<G>::max();
  T move = (g > G(0)) & (g <= limit) ? step : T(0);
  move = (g < G(0)) & (g >= -limit) ? -step : move;
  const T moved = flip(Rounding::add(flip(x_adv, move), flip(move, move)), move);
  return linf_project<Rounding>(moved, x, eps, lo, hi);
}

// What an element of the gradient adds to its sample's flags.
template <class G>
FR_HD int32_t linf_flags(G g) {
  return is_finite(g) ? (g != G(0) ? kUseful : 0) : kNonFinite;
}

}  // namespace fastrobust
