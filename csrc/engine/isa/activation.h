// Smooth and leaky activations: f(x) forwards, f'(x) from the same x backwards.
#pragma once
#include "../../common/math.h"
#include "block.h"

namespace fastrobust::engine::FR_ISA {

// The logistic function, and its complement without cancellation.
FR_INLINE float sigmoid(float x) {
  const float e = exp_negative(x < 0 ? x : -x), r = 1.0f / (1.0f + e);
  return x < 0 ? e * r : r;
}
// Near 0 by their series, where the differences would cancel.
FR_INLINE float tanh_of(float x) {
  const float z = x * x;
  const float near = x * (1.0f + z * (-1.0f / 3 + z * (2.0f / 15 + z * (-17.0f / 315 + z * (62.0f / 2835)))));
  return z < 0.0625f ? near : 2.0f * sigmoid(2.0f * x) - 1.0f;
}
FR_INLINE float expm1_negative(float x) {
  const float near =
      x * (1.0f + x * (1.0f / 2 + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120 + x * (1.0f / 720))))));
  return x > -0.25f ? near : exp_negative(x) - 1.0f;
}

// The normal distribution function, by erfc (Abramowitz and Stegun 7.1.26: error below 1.5e-7).
FR_INLINE float normal_cdf(float x) {
  const float z = (x < 0 ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
  const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  const float tail = 0.5f * p * exp_negative(-z * z);
  return x < 0 ? tail : 1.0f - tail;
}

// log(1 + v) for v in [0, 1]: by 2 atanh(v / (2 + v)).
FR_INLINE float log1p_unit(float v) {
  const float s = v / (2.0f + v), z = s * s;
  return 2.0f * s *
         (1.0f + z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9 + z * (1.0f / 11 + z / 13))))));
}

// a and b are the activation's parameters: see fastrobust/network/engine.py.
template <Function kFunction>
FR_INLINE float value_of(float x, float a, float b) {
  if constexpr (kFunction == Function::leaky_relu) return x > 0 ? x : a * x;
  if constexpr (kFunction == Function::sigmoid) return sigmoid(x);
  if constexpr (kFunction == Function::tanh) return tanh_of(x);
  if constexpr (kFunction == Function::silu) return x * sigmoid(x);
  if constexpr (kFunction == Function::gelu) return x * normal_cdf(x);
  if constexpr (kFunction == Function::gelu_tanh) return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
  if constexpr (kFunction == Function::softplus) {  // a: beta, b: where it becomes linear
    const float v = a * x;
    return v > b ? x : ((v > 0 ? v : 0.0f) + log1p_unit(exp_negative(v > 0 ? -v : v))) / a;
  }
  if constexpr (kFunction == Function::elu) return x > 0 ? x : a * expm1_negative(x);
  if constexpr (kFunction == Function::hardtanh) return x < a ? a : (x > b ? b : x);
  return x;
}

template <Function kFunction>
FR_INLINE float slope_of(float x, float a, float b) {
  if constexpr (kFunction == Function::leaky_relu) return x > 0 ? 1.0f : a;
  if constexpr (kFunction == Function::sigmoid) return sigmoid(x) * sigmoid(-x);
  if constexpr (kFunction == Function::tanh) return 4.0f * sigmoid(2.0f * x) * sigmoid(-2.0f * x);
  if constexpr (kFunction == Function::silu) return sigmoid(x) * (1.0f + x * sigmoid(-x));
  if constexpr (kFunction == Function::gelu) return normal_cdf(x) + x * 0.39894228f * exp_negative(-0.5f * x * x);
  if constexpr (kFunction == Function::gelu_tanh) {
    const float inner = 1.5957691216f * (x + 0.044715f * x * x * x), s = sigmoid(inner);
    return s + x * s * sigmoid(-inner) * 1.5957691216f * (1.0f + 0.134145f * x * x);
  }
  if constexpr (kFunction == Function::softplus) return a * x > b ? 1.0f : sigmoid(a * x);
  if constexpr (kFunction == Function::elu) return x > 0 ? 1.0f : a * exp_negative(x);
  if constexpr (kFunction == Function::hardtanh) return x > a && x < b ? 1.0f : 0.0f;
  return 1.0f;
}

class Activation : public Layer {
 public:
  Activation(const Op& op, int to, const Layout* at, const Route& route)
      : op_(op), to_(to), in_(at[op.in]), out_(at[to]), route_(route) {}

  void forward(const Block& b) const override {
    const float* x = b.value[op_.in];
    const Sink out = b.result(op_, to_);
    const float p = op_.alpha, q = op_.beta;
    pick([&](auto function) {
      each(out, [&](int64_t i, int64_t) { return value_of<decltype(function)::value>(x[i], p, q); }, out_);
    });
  }

  void backward(const Block& b) const override {
    const float *g = b.gradient[to_], *x = b.value[op_.in];
    const Sink gx = b.slope(op_.in, route_);
    const float p = op_.alpha, q = op_.beta;
    pick([&](auto function) {
      each(gx, [&](int64_t i, int64_t k) { return g[k] * slope_of<decltype(function)::value>(x[i], p, q); }, in_);
    });
  }

 private:
  template <Function kFunction>
  struct Constant {
    static constexpr Function value = kFunction;
  };

  template <class F>
  void pick(const F& f) const {
    switch (op_.function) {
      case Function::leaky_relu:
        return f(Constant<Function::leaky_relu>{});
      case Function::sigmoid:
        return f(Constant<Function::sigmoid>{});
      case Function::tanh:
        return f(Constant<Function::tanh>{});
      case Function::silu:
        return f(Constant<Function::silu>{});
      case Function::gelu:
        return f(Constant<Function::gelu>{});
      case Function::gelu_tanh:
        return f(Constant<Function::gelu_tanh>{});
      case Function::softplus:
        return f(Constant<Function::softplus>{});
      case Function::elu:
        return f(Constant<Function::elu>{});
      case Function::hardtanh:
        return f(Constant<Function::hardtanh>{});
    }
  }

  // Puts f(place in the input, in the result) for each element into `sink`, laid out as `at`.
  template <class F>
  FR_INLINE void each(const Sink& sink, const F& f, const Layout& at) const {
    each_vector<kLanes>(
        out_.shape,
        [&](int64_t, int64_t i, int64_t k, int64_t to) {
          float v[kLanes];
#pragma omp simd
          for (int l = 0; l < kLanes; ++l) v[l] = f(i + l, k + l);
          for (int l = 0; l < kLanes; l += kVector) {
            Vec y;
            memcpy(&y, v + l, sizeof(y));
            sink.put(to + l, y);
          }
        },
        in_, out_, at);
  }

  const Op& op_;
  int to_;
  Layout in_, out_;
  Route route_;
};

}  // namespace fastrobust::engine::FR_ISA
