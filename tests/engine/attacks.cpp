// Attacks, boxes and votes against what single passes say.
#include <algorithm>
#include <stdexcept>

#include "fastrobust/dispatch.h"
#include "task.h"

namespace fuzz {
namespace {

struct Spoils {
  Floats x_adv, value;
  Whole taken;
  std::vector<int32_t> flags;
  Flags success;
  explicit Spoils(const Task& t) : value(t.batch), taken(t.batch), flags(t.batch), success(t.batch) {}
};

// The attack, a pass and a step at a time for all samples together.
Spoils by_hand(const Engine& engine, const Task& task, const engine::Attack& a) {
  Spoils s(task);
  const auto* start = static_cast<const float*>(a.step.x_adv);
  s.x_adv.assign(start, start + task.x.size());
  Whole patience(task.batch, a.patience);
  std::vector<char> done(task.batch);
  for (bool any = true; any;) {
    any = false;
    Task here = task;
    here.x = s.x_adv;
    const Outcome o = run(engine, here, 1);
    for (int64_t b = 0; b < task.batch; ++b) {
      if (done[b]) continue;
      const bool fooled = task.target.empty() ? o.prediction[b] >= 0 && o.prediction[b] != task.label[b]
                                              : o.prediction[b] == task.target[b];
      if (s.taken[b] == a.steps || (a.early_stop && fooled && patience[b] == 0)) {
        done[b] = true;
        s.success.at[b] = fooled;
        s.value[b] = o.loss[b];
      } else {
        patience[b] -= fooled && patience[b] > 0;
        any = true;
      }
    }
    Floats moved(task.x.size());
    std::vector<int32_t> found(task.batch);
    PgdStep step = a.step;
    step.out = moved.data();
    step.x_adv = s.x_adv.data();
    step.grad = o.grad.data();
    step.flags = found.data();
    MUST(cpu::pgd_step(step, 1) == Status::ok, "a step");
    for (int64_t b = 0; b < task.batch; ++b) {
      if (done[b]) continue;
      std::copy_n(moved.begin() + b * task.dim, task.dim, s.x_adv.begin() + b * task.dim);
      s.flags[b] += found[b] != kUseful;
      ++s.taken[b];
    }
  }
  return s;
}

void check_inside(const PgdStep& a, const Floats& x_adv) {
  const auto* x = static_cast<const float*>(a.x);
  const auto each = [](const void* p, int64_t i, double otherwise) {
    return p ? static_cast<const float*>(p)[i] : otherwise;
  };
  for (int64_t b = 0; b < a.batch; ++b) {
    long double l1 = 0, l2 = 0, linf = 0;
    for (int64_t i = 0; i < a.dim; ++i) {
      const float v = x_adv[b * a.dim + i];
      MUST(v >= each(a.ball.lo_each, i, a.ball.lo) && v <= each(a.ball.hi_each, i, a.ball.hi), "outside the box: %g",
           v);
      const long double away = std::fabs(static_cast<long double>(v) - x[b * a.dim + i]);
      l1 += away;
      l2 += away * away;
      linf = std::max(linf, away);
    }
    const long double size = a.ball.norm == Norm::linf ? linf : (a.ball.norm == Norm::l2 ? std::sqrt(l2) : l1);
    const double eps = each(a.ball.eps_each, b, a.ball.eps);
    MUST(size <= eps * (1 + 1e-15L), "outside the ball: %.17Lg of %.17g", size, eps);
  }
}

}  // namespace

void check_attack(const Engine& engine, const Task& task, Draws& d) {
  Floats eps, alpha, low, high;
  const double reach = d.of(std::vector<double>{0, 0.03, 0.1, 0.5}) * d.real(0.5, 1);
  for (int64_t b = 0; b < task.batch; ++b) {
    eps.push_back(static_cast<float>(d.real(0, 2 * reach)));
    alpha.push_back(static_cast<float>(d.real(0, reach)));
  }
  for (int64_t i = 0; i < task.dim; ++i) {
    low.push_back(static_cast<float>(d.real(-0.2, 0)));
    high.push_back(static_cast<float>(d.real(1, 1.2)));
  }
  engine::Attack a{};
  a.step.x = task.x.data();
  a.step.dtype = a.step.grad_dtype = DType::f32;
  a.step.batch = task.batch;
  a.step.dim = task.dim;
  a.step.step = reach / 2;
  if (d.chance(0.5)) a.step.step_each = alpha.data();
  Ball& ball = a.step.ball;
  ball = {static_cast<Norm>(d.whole(0, 2)), reach, nullptr, 0, 1, nullptr, nullptr, d.chance(0.5)};
  if (d.chance(0.5)) ball.eps_each = eps.data();
  if (d.chance(0.5)) {
    ball.lo_each = low.data();
    ball.hi_each = high.data();
  }
  a.loss = task.bound();
  a.steps = d.whole(0, 4);
  a.early_stop = d.chance(0.5);
  a.patience = d.whole(0, 2);

  Floats start = task.x;
  if (d.chance(0.5)) {
    const RandomStart random{start.data(), task.x.data(), DType::f32, task.batch, task.dim, ball, 7, nullptr, 0};
    MUST(cpu::random_start(random, 1) == Status::ok, "a start");
  }
  a.step.x_adv = start.data();
  const Spoils wanted = by_hand(engine, task, a);
  check_inside(a.step, wanted.x_adv);

  // Without `success` there is one pass less, and nothing else changes.
  for (bool whole : {true, false}) {
    Spoils got(task);
    got.x_adv = start;
    a.step.x_adv = a.step.out = got.x_adv.data();
    a.step.flags = got.flags.data();
    a.success = whole ? got.success.at.get() : nullptr;
    a.value = whole ? got.value.data() : nullptr;
    a.taken = got.taken.data();
    MUST(engine.attack(a, static_cast<int>(d.whole(1, kMostThreads))) == Status::ok, "an attack");
    for (int64_t b = 0; b < task.batch; ++b) {
      const int64_t at = b * task.dim;
      MUST(same(&got.x_adv[at], &wanted.x_adv[at], task.dim), "sample %d", int(b));
      MUST(got.taken[b] == wanted.taken[b] && got.flags[b] == wanted.flags[b], "sample %d", int(b));
      if (!whole) continue;
      MUST(got.success.at[b] == wanted.success.at[b] && same(&got.value[b], &wanted.value[b], 1), "sample %d", int(b));
    }
  }
}

void check_boxes(const Net& net, const Engine& engine, const Task& task, Draws& d) {
  bool ruled = true;
  for (const Op& op : net.tape.ops) {
    if (op.kind == Kind::multiply) ruled = false;
    if (op.kind != Kind::activation) continue;
    const Function f = op.function;
    if (f == Function::silu || f == Function::gelu || f == Function::gelu_tanh) ruled = false;
    if ((f == Function::leaky_relu || f == Function::elu) && op.alpha < 0) ruled = false;
  }
  Floats lower, upper, lower_out(task.batch * task.classes), upper_out = lower_out;
  for (float x : task.x) {
    const float radius = static_cast<float>(d.chance(0.2) ? 0 : d.real(0, 0.1));
    lower.push_back(x - radius);
    upper.push_back(x + radius);
  }
  const engine::Boxes boxes{lower.data(), upper.data(), task.batch, lower_out.data(), upper_out.data()};
  bool refused = false;
  try {
    MUST(engine.boxes(boxes, static_cast<int>(d.whole(1, kMostThreads))) == Status::ok, "boxes");
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  MUST(refused == !ruled, "boxes have a rule for every op or are refused");
  if (refused) return;

  Task inside = task;
  for (size_t i = 0; i < task.x.size(); ++i) {
    const double share = d.chance(0.5) ? d.real(0, 1) : (d.chance(0.5) ? 0 : 1);
    inside.x[i] = std::clamp(static_cast<float>(lower[i] + share * (double(upper[i]) - lower[i])), lower[i], upper[i]);
  }
  const Outcome o = run(engine, inside, 1);
  for (size_t i = 0; i < o.logits.size(); ++i) {
    const double low = lower_out[i], high = upper_out[i], logit = o.logits[i];
    const double slack =
        1e-4 * (1 + std::fabs(low) + std::fabs(high));  // without widenings sums are not rounded outwards
    MUST(!(logit < low - slack || logit > high + slack), "logit %d: %g outside %g .. %g", int(i), logit, low, high);
  }
}

void check_votes(const Engine& engine, const Task& task, Draws& d) {
  Whole index;
  for (int64_t b = 0; b < task.batch; ++b) index.push_back(d.whole(0, 0xffffffff));
  const int64_t images = std::min<int64_t>(task.batch, d.whole(0, 5)), samples = d.whole(0, 20);
  engine::Votes votes{
      task.x.data(), index.data(), images, d.whole(0, 100), samples, static_cast<NoiseKind>(d.whole(0, 2)), 0.3, 5,
      nullptr};
  const auto count = [&](int64_t first, int64_t n, Whole* counts) {
    engine::Votes part = votes;
    part.first = first;
    part.samples = n;
    part.counts = counts->data();
    MUST(engine.votes(part, static_cast<int>(d.whole(1, kMostThreads))) == Status::ok, "votes");
  };
  Whole once(images * task.classes), twice = once;
  count(votes.first, samples, &once);
  const int64_t cut = d.whole(0, samples);
  count(votes.first, cut, &twice);
  count(votes.first + cut, samples - cut, &twice);
  MUST(once == twice, "votes depend on the division of the samples");
  for (int64_t i = 0; i < images; ++i) {
    int64_t sum = 0;
    for (int64_t c = 0; c < task.classes; ++c) sum += once[i * task.classes + c];
    MUST(sum <= samples, "more votes than samples");
  }
}

}  // namespace fuzz
