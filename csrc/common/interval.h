// What a block of interval propagation does to one element; shared by CPU and CUDA.
#pragma once
#include "activation.h"

namespace fastrobust {

template <class T>
struct Box {
  T centre, radius;
};

// The range of f on [m - q, m + q].
template <Function kFunction, class T>
FR_HD Box<T> box_through(T m, T q, T a, T b) {
  if constexpr (kFunction == Function::identity) return {m, q};
  const T lower = m - q, upper = m + q;
  T low = value_of<kFunction>(lower, a, b), high = value_of<kFunction>(upper, a, b);
  if constexpr (kFalls<kFunction>) {
    const T turn = T(kTurn<kFunction>), near = lower > turn ? lower : (upper < turn ? upper : turn);
    high = low > high ? low : high;
    low = value_of<kFunction>(near, a, b);
  }
  return {(low + high) / 2, (high - low) / 2};
}

// Gradients of m and q from those of the result.
template <Function kFunction, class T>
FR_HD Box<T> box_back(T m, T q, T a, T b, T by_centre, T by_radius) {
  if constexpr (kFunction == Function::identity) return {by_centre, by_radius};
  const T lower = m - q, upper = m + q;
  T by_low = (by_centre - by_radius) / 2, by_high = (by_centre + by_radius) / 2;
  if constexpr (kFalls<kFunction>) {
    const T turn = T(kTurn<kFunction>);
    const bool first = value_of<kFunction>(lower, a, b) > value_of<kFunction>(upper, a, b);
    const T at_lower = (first ? by_high : T(0)) + (lower >= turn ? by_low : T(0));
    by_high = (first ? T(0) : by_high) + (upper <= turn ? by_low : T(0));
    by_low = at_lower;
  }
  by_low *= slope_of<kFunction>(lower, a, b);
  by_high *= slope_of<kFunction>(upper, a, b);
  return {by_low + by_high, by_high - by_low};
}

// What a channel's gradient of its statistics adds to each of its elements: mean_part + var_part (x - mean).
template <class T>
struct Statistics {
  double by_scale, by_shift;  // of the norm's own weight and bias
  T mean_part, var_part;
};

// From sums over all elements, sum_m of the gradients of m, sum_mx of those times x, sum_qr of those of q times r.
template <class T>
FR_HD Statistics<T> channel_back(double s, double weight, double mean, double var, double eps, double count,
                                 double sum_m, double sum_mx, double sum_qr, double by_mean, double by_var) {
  const double rstd = 1 / sqrt(var + eps), by_s = sum_mx + (s > 0 ? sum_qr : (s < 0 ? -sum_qr : 0)) - sum_m * mean;
  by_var += -0.5 * rstd * rstd * rstd * weight * by_s;
  by_mean -= sum_m * s;
  return {by_s * rstd, sum_m, T(by_mean / count), T(2 * by_var / count)};
}

}  // namespace fastrobust
