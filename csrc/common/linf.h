// Linf: every coordinate on its own.
#pragma once
#include "math.h"

namespace fastrobust {

// How a + b is rounded towards -inf: by the exact error of the sum, or, in code that runs with the processor's rounding
// mode set so, by itself.
struct ByError {
  template <class T>
  FR_HD static T add(T a, T b) {
    return add_down(a, b);
  }
};
struct ByMode {
  template <class T>
  FR_HD static T add(T a, T b) {
    return a + b;
  }
};

// v clipped to [x - eps, x + eps] and to [lo, hi]. The ball's ends are rounded inwards, so that |out - x| <= eps holds
// in real arithmetic.
template <class Down = ByError, class T>
FR_HD T linf_project(T v, T x, T eps, T lo, T hi) {
  return clip(clip(v, -Down::add(eps, -x), Down::add(x, eps)), lo, hi);
}

// x_adv + step * sign(g), rounded down, and projected. A zero, infinite or NaN g moves nothing.
template <class Down = ByError, class T, class G>
FR_HD T linf_step(T x_adv, T x, G g, T step, T eps, T lo, T hi) {
  const G limit = std::numeric_limits<G>::max();
  T move = (g > G(0)) & (g <= limit) ? step : T(0);
  move = (g < G(0)) & (g >= -limit) ? -step : move;
  return linf_project<Down>(Down::add(x_adv, move), x, eps, lo, hi);
}

}  // namespace fastrobust
