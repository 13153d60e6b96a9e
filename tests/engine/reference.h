// What a tape means, one sample at a time in double precision: values as [c][h][w], every op by the loops of its
// definition, forwards and backwards. It shares nothing with the engine but the tape.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "fastrobust/engine.h"

namespace fuzz {

using namespace fastrobust;
using engine::Function;
using engine::Kind;
using engine::Op;
using engine::Shape;
using engine::Tape;
using Numbers = std::vector<double>;
using Tensors = std::vector<std::vector<float>>;

struct Smooth {
  double value, slope;
};

inline Smooth activation(Function f, double x, double a, double b) {
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  const double s = sigmoid(x);
  switch (f) {
    case Function::leaky_relu:
      return x > 0 ? Smooth{x, 1} : Smooth{a * x, a};
    case Function::sigmoid:
      return {s, s * (1 - s)};
    case Function::tanh:
      return {std::tanh(x), 1 - std::tanh(x) * std::tanh(x)};
    case Function::silu:
      return {x * s, s + x * s * (1 - s)};
    case Function::gelu: {
      const double phi = 0.5 * std::erfc(-x * std::sqrt(0.5));
      return {x * phi, phi + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI)};
    }
    case Function::gelu_tanh: {
      const double k = std::sqrt(2 / M_PI), t = std::tanh(k * (x + 0.044715 * x * x * x));
      return {0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x)};
    }
    case Function::softplus:
      return a * x > b ? Smooth{x, 1} : Smooth{std::log1p(std::exp(a * x)) / a, sigmoid(a * x)};
    case Function::elu:
      return x > 0 ? Smooth{x, 1} : Smooth{a * std::expm1(x), a * std::exp(x)};
    case Function::hardtanh:
      return x < a ? Smooth{a, 0} : (x > b ? Smooth{b, 0} : Smooth{x, x > a && x < b ? 1.0 : 0.0});
    default:  // the others are no layers of a tape
      break;
  }
  return {x, 1};
}

class Reference {
 public:
  Reference(const Tape& tape, const Tensors& tensors) : tape_(tape), tensors_(tensors) {
    for (const Shape& s : tape.values) {
      value_.emplace_back(s.size());
      gradient_.emplace_back(s.size());
    }
    size_.resize(tape.values.size());
    slope_size_.resize(tape.values.size());
  }

  // The logits. Beside them go the numbers that rounding errors are proportional to, one for each value.
  const Numbers& forward(const float* x) {
    for (size_t i = 0; i < value_[0].size(); ++i) value_[0][i] = x[i];
    size_[0] = std::max(1e-3, largest(value_[0]));
    gap_ = HUGE_VAL;
    for (size_t i = 0; i < tape_.ops.size(); ++i) {
      const Op& op = tape_.ops[i];
      Numbers& y = value_[i + 1];
      const int to = static_cast<int>(i) + 1;
      size_[to] = forward(op, to);
      for (double& v : y) {
        if (!op.relu) continue;
        kink(v, size_[to]);
        v = std::max(v, 0.0);
      }
      size_[to] = std::max(size_[to], largest(y));
    }
    return value_.back();
  }

  // d loss / d x from that by the logits, after forward().
  const Numbers& backward(const Numbers& slope) {
    for (Numbers& g : gradient_) std::fill(g.begin(), g.end(), 0.0);
    std::fill(slope_size_.begin(), slope_size_.end(), 0.0);
    gradient_.back() = slope;
    slope_size_.back() = largest(slope);
    for (size_t i = tape_.ops.size(); i-- > 0;) {
      Numbers& g = gradient_[i + 1];
      for (size_t k = 0; k < g.size() && tape_.ops[i].relu; ++k) g[k] = value_[i + 1][k] > 0 ? g[k] : 0.0;
      slope_size_[i + 1] = std::max(slope_size_[i + 1], largest(g));
      backward(tape_.ops[i], static_cast<int>(i) + 1);
    }
    return gradient_[0];
  }

  double logits_size() const { return size_.back(); }
  double slope_size() const { return slope_size_[0]; }
  // The largest of all of them: products of values multiply errors.
  double top_size() const { return *std::max_element(size_.begin(), size_.end()); }
  // How near the sample is to a point where a gradient jumps, relative to the size of the value there.
  double gap() const { return gap_; }

 private:
  static double largest(const Numbers& v) {
    double most = 0;
    for (double e : v) most = std::max(most, std::fabs(e));
    return most;
  }
  // Zeros are exact on both sides.
  void kink(double distance, double size) {
    if (distance != 0) gap_ = std::min(gap_, std::fabs(distance) / size);
  }

  // f(input, output, weight): places.
  template <class F>
  void taps(const Op& op, int to, const F& f) const {
    const Shape &in = tape_.values[op.in], &out = tape_.values[to];
    const int64_t cin = in.c / op.groups, cout = out.c / op.groups;
    for (int64_t o = 0; o < out.c; ++o)
      for (int64_t c = 0; c < cin; ++c)
        for (int64_t y = 0; y < op.kh; ++y)
          for (int64_t x = 0; x < op.kw; ++x)
            for (int64_t i = 0; i < out.h; ++i)
              for (int64_t j = 0; j < out.w; ++j) {
                const int64_t h = i * op.stride_h + y * op.dilation_h - op.pad_h;
                const int64_t w = j * op.stride_w + x * op.dilation_w - op.pad_w;
                if (h < 0 || h >= in.h || w < 0 || w >= in.w) continue;
                f(((o / cout * cin + c) * in.h + h) * in.w + w, (o * out.h + i) * out.w + j,
                  ((o * cin + c) * op.kh + y) * op.kw + x);
              }
  }

  // f(input, output, divisor of the window, whether the window ends here)
  template <class F>
  void pool(const Op& op, int to, const F& f) const {
    const Shape &in = tape_.values[op.in], &out = tape_.values[to];
    const engine::Windows& w = op.windows;
    for (int64_t k = 0; k < out.size(); ++k) {
      const int64_t c = k / (out.h * out.w), i = k / out.w % out.h, j = k % out.w;
      const double divisor = w.divisor.empty() ? 1 : w.divisor[i * out.w + j];
      for (int64_t y = w.row_begin[i]; y < w.row_end[i]; ++y)
        for (int64_t x = w.column_begin[j]; x < w.column_end[j]; ++x) f((c * in.h + y) * in.w + x, k, divisor);
    }
  }

  // The first of the largest in each window, and how far behind the next different one is.
  std::vector<int64_t> winners(const Op& op, int to) {
    const Numbers& x = value_[op.in];
    std::vector<int64_t> best(tape_.values[to].size(), -1);
    pool(op, to, [&](int64_t i, int64_t k, double) {
      if (best[k] < 0 || x[i] > x[best[k]]) best[k] = i;
    });
    pool(op, to, [&](int64_t i, int64_t k, double) {
      // Equal sums may differ after rounding: only zeros are trusted to be equal.
      if (i == best[k]) return;
      if (x[i] == x[best[k]] && x[i] != 0) gap_ = 0;
      kink(x[i] - x[best[k]], size_[op.in]);
    });
    return best;
  }

  // Of a weight: the root of the largest sum of squares that meets in one place, as errors of a sum go.
  double norm(const Op& op, int to, bool backwards) const {
    Numbers sum(tape_.values[backwards ? op.in : to].size());
    taps(op, to, [&](int64_t i, int64_t o, int64_t w) {
      sum[backwards ? i : o] += double(tensors_[op.weight][w]) * tensors_[op.weight][w];
    });
    return std::sqrt(largest(sum));
  }

  double forward(const Op& op, int to) {
    const Numbers& x = value_[op.in];
    Numbers& y = value_[to];
    const size_t n = y.size(), pixels = tape_.values[to].h * tape_.values[to].w;
    const double size = size_[op.in];
    const auto tensor = [&](int which, size_t i) { return static_cast<double>(tensors_[which][i]); };
    switch (op.kind) {
      case Kind::contract:
        for (size_t k = 0; k < n; ++k) y[k] = op.bias < 0 ? 0 : tensor(op.bias, k / pixels);
        taps(op, to, [&](int64_t i, int64_t o, int64_t w) { y[o] += tensor(op.weight, w) * x[i]; });
        return size * std::max(0.1, norm(op, to, false));
      case Kind::affine:
      case Kind::relu:
        for (size_t k = 0; k < n; ++k) {
          y[k] = x[k] * (op.weight < 0 ? 1 : tensor(op.weight, k / pixels));
          if (op.bias >= 0) y[k] += tensor(op.bias, k / pixels);
        }
        return 2 * size;
      case Kind::add:
        for (size_t k = 0; k < n; ++k) y[k] = x[k] + static_cast<double>(op.alpha) * value_[op.in2][k];
        return size + std::fabs(op.alpha) * size_[op.in2];
      case Kind::multiply:
        for (size_t k = 0; k < n; ++k) y[k] = x[k] * value_[op.in2][k];
        return size * size_[op.in2];
      case Kind::max_pool: {
        const std::vector<int64_t> best = winners(op, to);
        for (size_t k = 0; k < n; ++k) y[k] = x[best[k]];
        return size;
      }
      case Kind::avg_pool:
        std::fill(y.begin(), y.end(), 0.0);
        pool(op, to, [&](int64_t i, int64_t k, double divisor) { y[k] += x[i] / divisor; });
        return size;
      case Kind::rearrange:
        for (size_t k = 0; k < n; ++k) y[k] = op.source[k] < 0 ? 0 : x[op.source[k]];
        return size;
      case Kind::activation:
        for (size_t k = 0; k < n; ++k) {
          y[k] = activation(op.function, x[k], op.alpha, op.beta).value;
          if (op.function == Function::leaky_relu || op.function == Function::elu) kink(x[k], size);
          if (op.function == Function::hardtanh) kink(x[k] - op.alpha, size), kink(x[k] - op.beta, size);
        }
        return std::max(1.0, 2 * size);
      case Kind::concat:
        std::copy(x.begin(), x.end(), y.begin());
        std::copy(value_[op.in2].begin(), value_[op.in2].end(), y.begin() + static_cast<int64_t>(x.size()));
        return std::max(size, size_[op.in2]);
    }
    return 0;
  }

  void backward(const Op& op, int to) {
    const Numbers &x = value_[op.in], &g = gradient_[to];
    Numbers& gx = gradient_[op.in];
    const size_t n = g.size(), pixels = tape_.values[to].h * tape_.values[to].w;
    double share = 1, share2 = 1;
    switch (op.kind) {
      case Kind::contract:
        taps(op, to, [&](int64_t i, int64_t o, int64_t w) { gx[i] += g[o] * tensors_[op.weight][w]; });
        share = norm(op, to, true);
        break;
      case Kind::affine:
      case Kind::relu:
        for (size_t k = 0; k < n; ++k) gx[k] += g[k] * (op.weight < 0 ? 1 : tensors_[op.weight][k / pixels]);
        share = 2;
        break;
      case Kind::add:
        for (size_t k = 0; k < n; ++k) gx[k] += g[k];
        for (size_t k = 0; k < n; ++k) gradient_[op.in2][k] += g[k] * op.alpha;
        share2 = std::fabs(op.alpha);
        break;
      case Kind::multiply:
        for (size_t k = 0; k < n; ++k) gx[k] += g[k] * value_[op.in2][k];
        for (size_t k = 0; k < n; ++k) gradient_[op.in2][k] += g[k] * x[k];
        share = size_[op.in2];
        share2 = size_[op.in];
        break;
      case Kind::max_pool: {
        const std::vector<int64_t> best = winners(op, to);
        for (size_t k = 0; k < n; ++k) gx[best[k]] += g[k];
        break;
      }
      case Kind::avg_pool:
        pool(op, to, [&](int64_t i, int64_t k, double divisor) { gx[i] += g[k] / divisor; });
        break;
      case Kind::rearrange:
        for (size_t k = 0; k < n; ++k) {
          if (op.source[k] >= 0) gx[op.source[k]] += g[k];
        }
        break;
      case Kind::activation:
        for (size_t k = 0; k < n; ++k) gx[k] += g[k] * activation(op.function, x[k], op.alpha, op.beta).slope;
        share = std::max(2.0, size_[op.in]);  // slopes change with rounded values
        break;
      case Kind::concat:
        for (size_t k = 0; k < x.size(); ++k) gx[k] += g[k];
        for (size_t k = x.size(); k < n; ++k) gradient_[op.in2][k - x.size()] += g[k];
        break;
    }
    slope_size_[op.in] += share * slope_size_[to];
    if (op.in2 >= 0) slope_size_[op.in2] += share2 * slope_size_[to];
  }

  const Tape& tape_;
  const Tensors& tensors_;
  std::vector<Numbers> value_, gradient_;
  Numbers size_, slope_size_;
  double gap_ = 0;
};

}  // namespace fuzz
