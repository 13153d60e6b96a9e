// Logits and gradients against the reference, and whatever the batch and the threads.
#include <numeric>

#include "task.h"

namespace fuzz {
namespace {

constexpr double kError = 4e-6;  // of the sizes in reference.h

// d loss / d logits; *gap is how far the logits are, as a share of `size`, from where it jumps or has a pole.
Numbers slope_of(const Task& t, int64_t b, const Numbers& z, double size, double* gap) {
  const auto n = static_cast<int64_t>(z.size());
  const int64_t y = t.label[b], to = t.target.empty() ? -1 : t.target[b];
  const auto softmax = [&](const auto* v) {
    Numbers p(v, v + n);
    const double top = *std::max_element(p.begin(), p.end());
    for (double& e : p) e = std::exp(e - top);
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& e : p) e /= sum;
    return p;
  };
  Numbers g(n);
  *gap = HUGE_VAL;
  if (t.loss.kind == Loss::linear) {
    std::copy_n(t.reference.begin() + b * n, n, g.begin());
    return g;
  }
  if (t.loss.kind == Loss::ce || t.loss.kind == Loss::kl) {
    const Numbers p = softmax(z.data());
    Numbers q(n, t.loss.smoothing / static_cast<double>(n));
    if (t.loss.kind == Loss::kl)
      q = softmax(t.reference.data() + b * n);
    else
      q[to >= 0 ? to : y] += 1 - t.loss.smoothing;
    for (int64_t i = 0; i < n; ++i) g[i] = (t.loss.kind == Loss::ce && to >= 0 ? -1 : 1) * (p[i] - q[i]);
    return g;
  }
  Whole by(n);
  std::iota(by.begin(), by.end(), 0);
  std::stable_sort(by.begin(), by.end(), [&](int64_t i, int64_t j) { return z[i] > z[j]; });
  for (int64_t i = 0; i + 1 < n; ++i) *gap = std::min(*gap, (z[by[i]] - z[by[i + 1]]) / size);
  if (t.loss.kind == Loss::margin) {
    const int64_t label = to >= 0 ? to : y, other = by[0] == label ? by[1] : by[0];
    const double sign = to >= 0 ? -1 : 1;
    g[other] += sign;
    g[label] -= sign;
    return g;
  }
  const bool dlr = t.loss.kind == Loss::dlr;
  const int64_t up = dlr ? (by[0] == y ? by[1] : by[0]) : to;
  const double down = z[by[0]] - (dlr ? z[by[2]] : (z[by[2]] + z[by[3]]) / 2) + 1e-12;
  *gap = std::min(*gap, down / size * 1e-3);
  const double slope = -(z[up] - z[y]) / down / down;
  g[up] += 1 / down;
  g[y] -= 1 / down;
  g[by[0]] += slope;
  g[by[2]] -= dlr ? slope : slope / 2;
  if (!dlr) g[by[3]] -= slope / 2;
  return g;
}

void close(const char* what, double* worst_yet, const float* got, const Numbers& wanted, double allowed) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::fabs(got[i] - wanted[i]) / allowed;
    MUST(error <= 1, "%s %zu: %.9g, not %.9g +- %.2g", what, i, got[i], wanted[i], allowed);
    *worst_yet = std::max(*worst_yet, error);
  }
}

}  // namespace

Task draw_task(const Tape& tape, Draws& d) {
  // Naive loops and sanitizers are slow: fewer samples of large networks.
  int64_t work = 1;
  for (size_t i = 0; i < tape.ops.size(); ++i) {
    const Op& op = tape.ops[i];
    if (op.kind == Kind::contract) work += tape.values[i + 1].size() * op.kh * op.kw * tape.values[op.in].c / op.groups;
  }
  Whole sizes{0, 1, 15, 16, 17, 40, 129};
  while (sizes.size() > 5 && sizes.back() * work > 20000000) sizes.pop_back();
  Task t{d.of(sizes), tape.values[0].size(), tape.values.back().c, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < t.batch * t.dim; ++i)
    t.x.push_back(static_cast<float>(std::min(1.0, std::max(0.0, d.real(-0.1, 1.1)))));
  const int64_t kinds = t.classes < 3 ? 2 : (t.classes < 4 ? 3 : 4);
  t.loss.kind = d.chance(0.15) ? Loss::linear : static_cast<Loss>(d.whole(0, kinds));
  const bool either = t.loss.kind == Loss::ce || t.loss.kind == Loss::margin;
  const bool targeted = t.loss.kind == Loss::dlr_targeted || (either && d.chance(0.5));
  if (t.loss.kind == Loss::ce && d.chance(0.5)) t.loss.smoothing = d.real(0, 0.9);
  for (int64_t b = 0; b < t.batch; ++b) {
    t.label.push_back(d.whole(0, t.classes - 1));
    if (targeted) t.target.push_back((t.label[b] + d.whole(1, t.classes - 1)) % t.classes);
    for (int64_t i = 0; i < t.classes && (t.loss.kind == Loss::kl || t.loss.kind == Loss::linear); ++i)
      t.reference.push_back(static_cast<float>(d.normal()));
  }
  return t;
}

void check_passes(const Net& net, const Engine& engine, const Task& task, Draws& d) {
  const Outcome all = run(engine, task, static_cast<int>(d.whole(1, kMostThreads)));
  Reference reference(net.tape, net.tensors);
  for (int64_t n = 0; n < std::min<int64_t>(task.batch, 3); ++n) {
    const int64_t b = n == 0 ? task.batch - 1 : d.whole(0, task.batch - 1);
    const Numbers& z = reference.forward(task.x.data() + b * task.dim);
    if (!(reference.top_size() < 1e5)) continue;
    close("logit", &tally.logits, &all.logits[b * task.classes], z, kError * reference.logits_size());
    double gap;
    const Numbers slope = slope_of(task, b, z, reference.logits_size(), &gap);
    const Numbers& g = reference.backward(slope);
    const bool smooth = std::min(gap, reference.gap()) > kError;
    ++(smooth ? tally.compared : tally.skipped);
    // Besides its own rounding a gradient has that of the values it was taken at.
    const double size = (reference.slope_size() + 0.1) * std::max(1.0, reference.logits_size());
    if (smooth) close("gradient", &tally.gradients, &all.grad[b * task.dim], g, kError * size);
  }

  Whole order(task.batch);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = task.batch - 1; i > 0; --i) std::swap(order[i], order[d.whole(0, i)]);
  const auto cut = order.begin() + d.whole(0, task.batch);
  for (const Whole& part : {Whole(order.begin(), cut), Whole(cut, order.end())}) {
    const Outcome some = run(engine, task.pick(part), static_cast<int>(d.whole(1, kMostThreads)));
    for (size_t i = 0; i < part.size(); ++i) {
      const int64_t b = part[i], n = task.classes;
      MUST(same(&some.logits[i * n], &all.logits[b * n], n), "logits depend on the batch");
      MUST(same(&some.grad[i * task.dim], &all.grad[b * task.dim], task.dim), "gradients depend on the batch");
      MUST(same(&some.loss[i], &all.loss[b], 1), "losses depend on the batch");
      MUST(some.prediction[i] == all.prediction[b], "predictions depend on the batch");
    }
  }
}

}  // namespace fuzz
