// The engine for one instruction set: the layers of a tape, and what is done with a block of samples.
#include "../../cpu/parallel.h"
#include "activation.h"
#include "add.h"
#include "affine.h"
#include "concat.h"
#include "contract.h"
#include "flatten.h"
#include "multiply.h"
#include "pool.h"
#include "resample.h"

namespace fastrobust::cpu::FR_ISA {
Status pgd_step(const PgdStep&, int threads);
Status logit_loss(const LogitLoss&, int threads);
}  // namespace fastrobust::cpu::FR_ISA

namespace fastrobust::engine::FR_ISA {
namespace {

Layer* layer(const Op& op, int to, const Layout* at, const Route& route, const Route& route2) {
  switch (op.kind) {
    case Kind::contract:
      return new Contract(op, to, at, route);
    case Kind::add:
      return new Add(op, to, at, route, route2);
    case Kind::affine:
    case Kind::relu:
      return new Affine(op, to, at, route);
    case Kind::max_pool:
    case Kind::avg_pool:
      return new Pool(op, to, at, route);
    case Kind::flatten:
      return new Flatten(op, to, at, route);
    case Kind::activation:
      return new Activation(op, to, at, route);
    case Kind::multiply:
      return new Multiply(op, to, at, route, route2);
    case Kind::concat:
      return new Concat(op, to, at, route, route2);
    case Kind::resample:
      return new Resample(op, to, at, route);
  }
  return nullptr;
}

// A thread's memory, divided.
struct Workspace {
  Array<float*> value, gradient;
  float *logits, *slope, *rows;  // of up to 16 samples
};

class Blocks : public Body {
 public:
  explicit Blocks(const Plan& plan) : plan_(plan) {
    const int64_t values = plan.count + 1;
    layouts_ = new Layout[values];
    for (int64_t v = 0; v < values; ++v) layouts_[v].shape = plan.values[v];
    for (int64_t i = 0; i < plan.count; ++i) {
      const Op& op = plan.ops[i];
      if (op.kind == Kind::contract) Contract::widen(op, &layouts_[op.in], &layouts_[i + 1]);
    }
    // Gradients come from the last reader of a value first; the first reader is the last to write, and masks.
    Array<Route> routes[2];
    Array<Route*> latest;
    for (int64_t i = 0; i < values; ++i) {
      routes[0].push({});
      routes[1].push({});
      latest.push(nullptr);
    }
    for (int64_t i = plan.count; i-- > 0;) {
      const int reads[2] = {plan.ops[i].in, plan.ops[i].in2};
      for (int which = 0; which < 2; ++which) {
        if (reads[which] < 0) continue;
        Route& route = routes[which][i];
        route.add = latest[reads[which]] != nullptr;
        latest[reads[which]] = &route;
      }
    }
    for (int64_t v = 1; v < values; ++v) {
      if (latest[v]) latest[v]->mask = plan.ops[v - 1].relu;
    }
    for (int64_t i = 0; i < plan.count; ++i)
      layers_.push(layer(plan.ops[i], static_cast<int>(i) + 1, layouts_, routes[0][i], routes[1][i]));
  }

  ~Blocks() override {
    for (int64_t i = 0; i < layers_.size(); ++i) delete layers_[i];
    delete[] layouts_;
  }

  void load(const float* const* tensors) override {
    for (int64_t i = 0; i < layers_.size(); ++i) layers_[i]->load(tensors);
  }

  int64_t floats() const override {
    int64_t n = kLanes * (input().shape.size() + 2 * classes());
    for (int64_t v = 0; v <= plan_.count; ++v) n += 2 * layouts_[v].size();
    return n;
  }

  int lanes() const override { return kLanes; }

  void run(const Pass& pass, int threads, float* const* memory) const override {
    const int64_t dim = input().shape.size();
    for_blocks(pass.batch, threads, memory, [&](const Workspace& w, int64_t first, int64_t count) {
      float* logits = pass.logits ? pass.logits + first * classes() : w.logits;
      forward(w, pass.x + first * dim, count, logits);
      if (!pass.loss) return;
      loss(w, *pass.loss, first, count, logits);
      if (pass.grad) backward(w, count, pass.grad + first * dim);
    });
  }

  void attack(const Attack& a, int threads, float* const* memory) const override {
    const int64_t dim = input().shape.size();
    for_blocks(a.step.batch, threads, memory, [&](const Workspace& w, int64_t first, int64_t count) {
      const auto from = [](const void* p, int64_t n) { return p ? static_cast<const float*>(p) + n : nullptr; };
      int32_t flags[kLanes];
      PgdStep step = a.step;
      step.batch = count;
      step.x_adv = from(a.step.x_adv, first * dim);
      step.out = static_cast<float*>(a.step.out) + first * dim;
      step.x = from(a.step.x, first * dim);
      step.grad = w.rows;
      step.step_each = from(a.step.step_each, first);
      step.ball.eps_each = from(a.step.ball.eps_each, first);
      step.flags = a.step.flags ? flags : nullptr;
      for (int64_t k = 0; k < a.steps; ++k) {
        forward(w, static_cast<const float*>(step.x_adv), count, w.logits);
        loss(w, a.loss, first, count, w.logits);
        backward(w, count, w.rows);
        for (int32_t& flag : flags) flag = 0;
        cpu::FR_ISA::pgd_step(step, 1);
        for (int64_t l = 0; a.step.flags && l < count; ++l) a.step.flags[first + l] += flags[l] != kUseful;
      }
    });
  }

 private:
  const Layout& input() const { return layouts_[0]; }
  const Layout& output() const { return layouts_[plan_.count]; }
  int64_t classes() const { return output().shape.c; }

  // item(workspace, first sample, samples) for each block, in threads with a memory each.
  template <class Item>
  void for_blocks(int64_t batch, int threads, float* const* memory, const Item& item) const {
    const int64_t blocks = (batch + kLanes - 1) / kLanes;
    int next = 0;
    const auto make = [&] {
      int own;
#pragma omp atomic capture
      own = next++;
      return divide(memory[own]);
    };
    cpu::FR_ISA::in_team(threads, blocks, make, [&](const Workspace& w, int64_t b) {
      item(w, b * kLanes, least(kLanes, batch - b * kLanes));
    });
  }

  Workspace divide(float* at) const {
    Workspace w;
    const auto take = [&](int64_t n) {
      float* here = at;
      at += n;
      return here;
    };
    for (int64_t v = 0; v <= plan_.count; ++v) {
      w.value.push(take(layouts_[v].size()));
      w.gradient.push(take(layouts_[v].size()));
    }
    w.logits = take(kLanes * classes());
    w.slope = take(kLanes * classes());
    w.rows = take(kLanes * input().shape.size());
    return w;
  }

  // f(place in a row, place of lane 0 in the block)
  template <class F>
  static void places(const Layout& l, const F& f) {
    int64_t i = 0;
    for (int64_t c = 0; c < l.shape.c; ++c) {
      for (int64_t h = 0; h < l.shape.h; ++h) {
        for (int64_t w = 0; w < l.shape.w; ++w) f(i++, l.at(c, h, w));
      }
    }
  }

  // Lanes beyond `count` repeat the first sample.
  static void to_lanes(const Layout& l, const float* rows, int64_t count, float* out) {
    const int64_t dim = l.shape.size();
    const float* row[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) row[lane] = rows + (lane < count ? lane : 0) * dim;
    places(l, [&](int64_t i, int64_t at) {
      for (int64_t lane = 0; lane < kLanes; ++lane) out[at + lane] = row[lane][i];
    });
  }

  static void to_rows(const Layout& l, const float* lanes, int64_t count, float* rows) {
    const int64_t dim = l.shape.size();
    places(l, [&](int64_t i, int64_t at) {
      for (int64_t lane = 0; lane < count; ++lane) rows[lane * dim + i] = lanes[at + lane];
    });
  }

  void forward(const Workspace& w, const float* x, int64_t count, float* logits) const {
    to_lanes(input(), x, count, w.value[0]);
    for (int64_t i = 0; i < layers_.size(); ++i) layers_[i]->forward({w.value.data(), w.gradient.data()});
    to_rows(output(), w.value[plan_.count], count, logits);
  }

  // The loss of some rows; its gradient goes to w.slope.
  void loss(const Workspace& w, const LogitLoss& whole, int64_t first, int64_t count, const float* logits) const {
    float value[kLanes];
    int64_t prediction[kLanes];
    bool correct[kLanes];
    LogitLoss a = whole;
    a.logits = logits;
    a.dtype = DType::f32;
    a.batch = count;
    a.classes = classes();
    a.label = whole.label + first;
    if (whole.target) a.target = whole.target + first;
    if (whole.reference) a.reference = static_cast<const float*>(whole.reference) + first * a.classes;
    a.loss = whole.loss ? static_cast<float*>(whole.loss) + first : value;
    a.prediction = whole.prediction ? whole.prediction + first : prediction;
    a.correct = whole.correct ? whole.correct + first : correct;
    a.grad = w.slope;
    cpu::FR_ISA::logit_loss(a, 1);
  }

  void backward(const Workspace& w, int64_t count, float* grad) const {
    float* seed = w.gradient[plan_.count];
    to_lanes(output(), w.slope, count, seed);
    if (plan_.ops[plan_.count - 1].relu) {
      const float* value = w.value[plan_.count];
      each_vector(output(), [&](int64_t i) { settle({false, true}, seed, value, i, read(seed + i)); });
    }
    for (int64_t i = layers_.size(); i-- > 0;) layers_[i]->backward({w.value.data(), w.gradient.data()});
    to_rows(input(), w.gradient[0], count, grad);
  }

  Plan plan_;
  Layout* layouts_;
  Array<Layer*> layers_;
};

}  // namespace

Body* make(const Plan& plan) { return new Blocks(plan); }

}  // namespace fastrobust::engine::FR_ISA
