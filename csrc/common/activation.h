// Activations: values and slopes, for loops over vectors of float, and over double.
#pragma once
#include "fastrobust/types.h"
#include "math.h"

namespace fastrobust {

// The logistic function, and its complement without cancellation.
template <class T>
FR_HD T sigmoid(T x) {
  const T e = exp_negative(x < 0 ? x : -x), r = T(1) / (T(1) + e);
  return x < 0 ? e * r : r;
}
// Near 0 by their series, where the differences would cancel.
FR_HD float tanh_of(float x) {
  const float z = x * x;
  const float near = x * (1.0f + z * (-1.0f / 3 + z * (2.0f / 15 + z * (-17.0f / 315 + z * (62.0f / 2835)))));
  return z < 0.0625f ? near : 2.0f * sigmoid(2.0f * x) - 1.0f;
}
FR_HD double tanh_of(double x) { return tanh(x); }
FR_HD float expm1_negative(float x) {
  const float near =
      x * (1.0f + x * (1.0f / 2 + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120 + x * (1.0f / 720))))));
  return x > -0.25f ? near : exp_negative(x) - 1.0f;
}
FR_HD double expm1_negative(double x) { return expm1(x); }

// The normal distribution function, by erfc (Abramowitz and Stegun 7.1.26: error below 1.5e-7).
FR_HD float normal_cdf(float x) {
  const float z = (x < 0 ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
  const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  const float tail = 0.5f * p * exp_negative(-z * z);
  return x < 0 ? tail : 1.0f - tail;
}
FR_HD double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }

// log(1 + v) for v in [0, 1]: by 2 atanh(v / (2 + v)).
FR_HD float log1p_unit(float v) {
  const float s = v / (2.0f + v), z = s * s;
  return 2.0f * s *
         (1.0f + z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9 + z * (1.0f / 11 + z / 13))))));
}
FR_HD double log1p_unit(double v) { return log1p(v); }

template <Function kFunction, class T>
FR_HD T value_of(T x, T a, T b) {
  if constexpr (kFunction == Function::relu) return x > 0 ? x : (x < 0 ? T(0) : x);
  if constexpr (kFunction == Function::leaky_relu) return x > 0 ? x : a * x;
  if constexpr (kFunction == Function::sigmoid) return sigmoid(x);
  if constexpr (kFunction == Function::tanh) return tanh_of(x);
  if constexpr (kFunction == Function::silu) return x * sigmoid(x);
  if constexpr (kFunction == Function::gelu) return x * normal_cdf(x);
  if constexpr (kFunction == Function::gelu_tanh)
    return x * sigmoid(T(1.5957691216057308) * (x + T(0.044715) * x * x * x));
  if constexpr (kFunction == Function::softplus) {
    const T v = a * x;
    return v > b ? x : ((v > 0 ? v : T(0)) + log1p_unit(exp_negative(v > 0 ? -v : v))) / a;
  }
  if constexpr (kFunction == Function::elu) return x > 0 ? x : a * expm1_negative(x);
  if constexpr (kFunction == Function::hardtanh) return x < a ? a : (x > b ? b : x);
  return x;
}

template <Function kFunction, class T>
FR_HD T slope_of(T x, T a, T b) {
  if constexpr (kFunction == Function::relu) return x > 0 ? T(1) : T(0);
  if constexpr (kFunction == Function::leaky_relu) return x > 0 ? T(1) : a;
  if constexpr (kFunction == Function::sigmoid) return sigmoid(x) * sigmoid(-x);
  if constexpr (kFunction == Function::tanh) return T(4) * sigmoid(T(2) * x) * sigmoid(T(-2) * x);
  if constexpr (kFunction == Function::silu) return sigmoid(x) * (T(1) + x * sigmoid(-x));
  if constexpr (kFunction == Function::gelu)
    return normal_cdf(x) + x * T(0.39894228040143268) * exp_negative(T(-0.5) * x * x);
  if constexpr (kFunction == Function::gelu_tanh) {
    const T inner = T(1.5957691216057308) * (x + T(0.044715) * x * x * x), s = sigmoid(inner);
    return s + x * s * sigmoid(-inner) * T(1.5957691216057308) * (T(1) + T(0.134145) * x * x);
  }
  if constexpr (kFunction == Function::softplus) return a * x > b ? T(1) : sigmoid(a * x);
  if constexpr (kFunction == Function::elu) return x > 0 ? T(1) : a * exp_negative(x);
  if constexpr (kFunction == Function::hardtanh) return x > a && x < b ? T(1) : T(0);
  return T(1);
}

// Where a function that first falls begins to rise; of the others nothing is asked.
template <Function kFunction>
constexpr bool kFalls = kFunction == Function::silu || kFunction == Function::gelu || kFunction == Function::gelu_tanh;
template <Function kFunction>
constexpr double kTurn = kFunction == Function::silu   ? -1.2784645427610738
                         : kFunction == Function::gelu ? -0.7517915246935645
                                                       : -0.7524614220710162;

template <Function kFunction>
struct FunctionConstant {
  static constexpr Function value = kFunction;
};

// f(FunctionConstant<function>{}); identity for what is no activation.
template <class F>
void with_function(Function function, const F& f) {
  switch (function) {
    case Function::leaky_relu:
      return f(FunctionConstant<Function::leaky_relu>{});
    case Function::sigmoid:
      return f(FunctionConstant<Function::sigmoid>{});
    case Function::tanh:
      return f(FunctionConstant<Function::tanh>{});
    case Function::silu:
      return f(FunctionConstant<Function::silu>{});
    case Function::gelu:
      return f(FunctionConstant<Function::gelu>{});
    case Function::gelu_tanh:
      return f(FunctionConstant<Function::gelu_tanh>{});
    case Function::softplus:
      return f(FunctionConstant<Function::softplus>{});
    case Function::elu:
      return f(FunctionConstant<Function::elu>{});
    case Function::hardtanh:
      return f(FunctionConstant<Function::hardtanh>{});
    case Function::relu:
      return f(FunctionConstant<Function::relu>{});
    case Function::identity:
      break;
  }
  f(FunctionConstant<Function::identity>{});
}

}  // namespace fastrobust
