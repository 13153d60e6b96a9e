// Whole attacks on a batch by the plain loops of mlp_reference.h and the kernels of logit_loss and pgd_step.
#pragma once
#include <cmath>

#include "check.h"
#include "fastrobust/logit_loss.h"
#include "fastrobust/perturb.h"
#include "mlp_reference.h"

namespace check {

using namespace fastrobust;

// What an attack is asked for.
struct Wish {
  Norm norm = Norm::linf;
  Loss loss = Loss::ce;
  int64_t steps = 3;
  bool targeted = false, each = false, boxed = false, exact = true, early_stop = false, judged = true, odd = false;
  int64_t patience = 0, zero = -1;  // zero: a feature that starts there
};

// A batch of samples, and what the reference makes of it.
struct Batch {
  int64_t count, dim, classes;
  std::vector<float> x, start, reference, eps, alpha, lo, hi;
  std::vector<int64_t> label, target;

  Batch(const Network& net, int64_t n, const Wish& wish) : count(n), dim(net.inputs()), classes(net.classes()) {
    const auto fill = [](std::vector<float>& to, int64_t size, double a, double b) {
      for (int64_t i = 0; i < size; ++i) to.push_back(float(uniform(a, b)));
    };
    fill(x, n * dim, 0.1, 0.9);
    for (float v : x) start.push_back(v + float(uniform(-0.05, 0.05)));
    fill(reference, n * classes, -2, 2);
    fill(eps, n, 0, 0.2);
    fill(alpha, n, -0.1, 0.1);
    fill(lo, dim, -0.1, 0.1);
    fill(hi, dim, 0.9, 1.1);
    const auto any = [&] { return std::uniform_int_distribution<int64_t>(0, classes - 1)(generator()); };
    for (int64_t b = 0; b < n; ++b) label.push_back(any()), target.push_back(any());
    for (int64_t b = 0; wish.zero >= 0 && b < n; ++b) start[b * dim + wish.zero] = 0.0f;
    if (!wish.odd) return;
    label[n / 2] = classes;  // out of range: a loss of NaN, no gradient
    for (int64_t b = 0; b < n; ++b) start[b * dim + b % dim] = b % 3 == 0 ? NAN : b % 3 == 1 ? INFINITY : -INFINITY;
  }

  LogitLoss loss(const Wish& w) const {
    LogitLoss a{};
    a.kind = w.loss;
    a.label = label.data();
    a.target = w.targeted ? target.data() : nullptr;
    a.reference = w.loss == Loss::kl ? reference.data() : nullptr;
    return a;
  }
  PgdStep step(const Wish& w, float* x_adv, const float* grad, int32_t* flags) const {
    const double unit = w.norm == Norm::linf ? 0.1 : w.norm == Norm::l2 ? 0.1 * std::sqrt(double(dim)) : 0.05 * dim;
    const Ball ball{w.norm,
                    unit,
                    w.each ? eps.data() : nullptr,
                    0.05,
                    0.95,
                    w.boxed ? lo.data() : nullptr,
                    w.boxed ? hi.data() : nullptr,
                    w.exact};
    return {x_adv, x_adv, x.data(), grad, DType::f32, DType::f32, count, dim, unit / 3, w.each ? alpha.data() : nullptr,
            ball,  flags};
  }
};

struct Outcome {
  Array<float> x_adv, value;
  Array<unsigned char> success;
  Array<int64_t> taken;
  Array<int32_t> bad;

  explicit Outcome(const Batch& b)
      : x_adv(b.count * b.dim, 0, [&](int64_t i) { return b.start[i]; }),
        value(b.count),
        success(b.count),
        taken(b.count),
        bad(b.count, 0, [](int64_t) { return 0; }) {}
  bool intact() const { return x_adv.intact() && value.intact() && success.intact() && taken.intact() && bad.intact(); }
};

// Losses and gradients of logits by the kernel of logit_loss.
struct Losses {
  std::vector<float> value, slope;
  std::vector<int64_t> prediction;
  std::vector<unsigned char> correct;

  Losses(LogitLoss a, const std::vector<float>& logits, int64_t count, int64_t classes)
      : value(count), slope(logits.size()), prediction(count), correct(count) {
    a.logits = logits.data();
    a.dtype = DType::f32;
    a.batch = count;
    a.classes = classes;
    a.loss = value.data();
    a.grad = slope.data();
    a.prediction = prediction.data();
    a.correct = reinterpret_cast<bool*>(correct.data());
    EXPECT(cuda::logit_loss(a, stream()) == Status::ok, "launch");
  }
};

template <class Z>
std::vector<Z> part(const std::vector<Z>& all, int64_t b, int64_t n) {
  return {all.begin() + b * n, all.begin() + (b + 1) * n};
}

// Values, logits and gradients.
struct Gradients {
  std::vector<std::vector<std::vector<float>>> values;
  std::vector<float> logits, grad;
  Losses losses;

  Gradients(const Network& net, const Batch& b, const LogitLoss& loss, const float* x)
      : values(forward(net, b, x)), logits(rows(values)), losses(loss, logits, b.count, b.classes) {
    for (int64_t s = 0; s < b.count; ++s) {
      const std::vector<float> g = net.backward(values[s], part(losses.slope, s, b.classes));
      grad.insert(grad.end(), g.begin(), g.end());
    }
  }
  static std::vector<std::vector<std::vector<float>>> forward(const Network& net, const Batch& b, const float* x) {
    std::vector<std::vector<std::vector<float>>> all;
    for (int64_t s = 0; s < b.count; ++s) all.push_back(net.forward<float>(x + s * b.dim));
    return all;
  }
  static std::vector<float> rows(const std::vector<std::vector<std::vector<float>>>& all) {
    std::vector<float> logits;
    for (const auto& v : all) logits.insert(logits.end(), v.back().begin(), v.back().end());
    return logits;
  }
};

inline Outcome expected_outcome(const Network& net, const Batch& b, const Wish& w) {
  Outcome out(b);
  std::vector<float> now = b.start;
  std::vector<bool> left(b.count, false);
  std::vector<int64_t> patience(b.count, w.patience);
  for (int64_t k = 0;; ++k) {
    const Gradients g(net, b, b.loss(w), now.data());
    for (int64_t s = 0; s < b.count; ++s) {
      const int64_t p = g.losses.prediction[s];
      const bool fooled = w.targeted ? p == b.target[s] : p >= 0 && p != b.label[s];
      if (left[s]) continue;
      if (k < w.steps && !(w.early_stop && fooled && patience[s] == 0)) {
        patience[s] -= fooled && patience[s] > 0;
        continue;
      }
      left[s] = true;
      std::memcpy(out.x_adv.data() + s * b.dim, now.data() + s * b.dim, b.dim * sizeof(float));
      out.value[s] = g.losses.value[s];
      out.success[s] = fooled;
      out.taken[s] = k;
    }
    if (k == w.steps) return out;
    std::vector<int32_t> flags(b.count, 0);
    EXPECT(cuda::pgd_step(b.step(w, now.data(), g.grad.data(), flags.data()), stream()) == Status::ok, "launch");
    for (int64_t s = 0; s < b.count; ++s) out.bad[s] += !left[s] && flags[s] != kUseful;
  }
}

}  // namespace check
