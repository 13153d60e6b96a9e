// The engine for one instruction set: the layers of a tape, and what is done with a block of samples.
#include "../../cpu/noise_lanes.h"
#include "../../cpu/parallel.h"
#include "activation.h"
#include "add.h"
#include "affine.h"
#include "concat.h"
#include "convolution.h"
#include "lanes.h"
#include "memory.h"
#include "multiply.h"
#include "pool.h"
#include "rate.h"
#include "rearrange.h"
#include "serve.h"

namespace fastrobust::cpu::FR_ISA {
Status logit_loss(const LogitLoss&, int threads);
}  // namespace fastrobust::cpu::FR_ISA

namespace fastrobust::engine::FR_ISA {
namespace {

Layer* layer(const Op& op, int to, const Layout* at, const Route& route, const Route& route2, const Plan& plan) {
  switch (op.kind) {
    case Kind::contract:
      return new Contract(op, to, at, route, plan.boxes, plan.single);
    case Kind::add:
      return new Add(op, to, at, route, route2);
    case Kind::affine:
    case Kind::relu:
      return new Affine(op, to, at, route);
    case Kind::max_pool:
    case Kind::avg_pool:
      return new Pool(op, to, at, route);
    case Kind::rearrange:
      return new Rearrange(op, to, at, route);
    case Kind::activation:
      return new Activation(op, to, at, route);
    case Kind::multiply:
      return new Multiply(op, to, at, route, route2);
    case Kind::concat:
      return new Concat(op, to, at, route, route2);
  }
  return nullptr;
}

class Blocks : public Body {
 public:
  explicit Blocks(const Plan& plan) : plan_(plan) {
    const int64_t values = plan.count + 1;
    layouts_ = new Layout[values];
    for (int64_t v = 0; v < values; ++v) {
      Shape& shape = layouts_[v].shape = plan.values[v];
      layouts_[v].channels = shape.c;
      if (plan.single) shape.c = (shape.c + kLanes - 1) / kLanes;
      shape.w *= plan.together;
    }
    for (int64_t i = 0; i < plan.count; ++i) {
      const Op& op = plan.ops[i];
      if (op.kind == Kind::contract) Contract::widen(op, &layouts_[op.in], &layouts_[i + 1]);
    }
    // Values of one shape share their memory: one border for all.
    for (int64_t v = 0; v < values; ++v) {
      for (int64_t u = 0; u < values; ++u) {
        Layout &a = layouts_[u], &b = layouts_[v];
        if (!a.same_shape(b)) continue;
        a.border_h = b.border_h = most(a.border_h, b.border_h);
        a.border_w = b.border_w = most(a.border_w, b.border_w);
      }
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
    Array<bool> masked;
    for (int64_t v = 0; v < values; ++v) {
      masked.push(v > 0 && plan.ops[v - 1].relu);
      if (latest[v]) latest[v]->mask = masked[v];
    }
    memory_ = new Memory(plan, layouts_, masked);
    fill_places(layouts_[0], plan.values[0], &in_places_);
    fill_places(layouts_[plan.count], plan.values[plan.count], &out_places_);
    for (int64_t i = 0; i < plan.count; ++i)
      layers_.push(layer(plan.ops[i], static_cast<int>(i) + 1, layouts_, routes[0][i], routes[1][i], plan));
    for (int64_t i = 0; i < layers_.size(); ++i) scratch_ = most(scratch_, layers_[i]->scratch());
  }

  ~Blocks() override {
    for (int64_t i = 0; i < layers_.size(); ++i) delete layers_[i];
    delete[] layouts_;
    delete memory_;
  }

  void load(const float* const* tensors) override {
    for (int64_t i = 0; i < layers_.size(); ++i) layers_[i]->load(tensors);
  }

  int64_t floats() const override { return memory_->floats() + scratch_ + lanes() * (4 * dim() + 3 * classes()); }

  int lanes() const override { return plan_.single ? 1 : kLanes * static_cast<int>(plan_.together); }

  void run(const Pass& pass, int threads, float* const* memory) const override {
    const int64_t dim = this->dim(), blocks = (pass.batch + lanes() - 1) / lanes();
    in_team(threads, blocks, memory, [&](const Workspace& w, int64_t block) {
      const int64_t first = block * lanes(), count = least(lanes(), pass.batch - first);
      float* logits = pass.logits ? pass.logits + first * classes() : w.logits;
      forward(w, pass.x + first * dim, count, logits, pass.loss != nullptr);
      if (!pass.loss) return;
      LogitLoss loss = *pass.loss;
      loss.label += first;
      if (loss.target) loss.target += first;
      if (loss.reference) loss.reference = static_cast<const float*>(loss.reference) + first * classes();
      loss.loss = static_cast<float*>(loss.loss) + first;
      loss.prediction += first;
      loss.correct += first;
      lose(w, loss, count, logits);
      if (pass.grad) backward(w, count, pass.grad + first * dim);
    });
  }

  void attack(const Attack& a, int threads, float* const* memory) const override {
    int64_t next = 0;
    in_team(threads, threads, memory, [&](const Workspace& w, int64_t) { serve(*this, a, w, &next); });
  }

  int64_t without_boxes() const override {
    for (int64_t i = 0; i < layers_.size(); ++i) {
      if (!layers_[i]->has_boxes()) return i;
    }
    return -1;
  }

  int64_t roundings(int64_t op) const override { return layers_[op]->roundings(); }

  void boxes(const Boxes& a, int threads, float* const* memory) const override {
    in_team(threads, (a.batch + lanes() - 1) / lanes(), memory, [&](const Workspace& w, int64_t block) {
      const int64_t first = block * lanes(), count = least(lanes(), a.batch - first), last = plan_.count;
      float *centre = w.value[0], *radius = w.gradient[0];
      to_lanes(in_places_, a.lower + first * dim(), count, lanes(), centre);
      to_lanes(in_places_, a.upper + first * dim(), count, lanes(), radius);
      const PairSink in{centre, radius, false};
      each_vector(
          layouts_[0].shape, [&](int64_t, int64_t i) { in.put(i, Pair::between(read(centre + i), read(radius + i))); },
          layouts_[0]);
      const Block all{w.value.data(), w.gradient.data(), nullptr, w.scratch, false, a.widening};
      for (int64_t i = 0; i < layers_.size(); ++i) layers_[i]->boxes(all);
      float *lower = w.value[last], *upper = w.gradient[last];
      each_vector(
          layouts_[last].shape,
          [&](int64_t, int64_t i) {
            const Pair out{read(lower + i), read(upper + i)};
            store(lower + i, out.low());
            store(upper + i, out.high());
          },
          layouts_[last]);
      to_rows(out_places_, lower, count, lanes(), a.lower_out + first * classes());
      to_rows(out_places_, upper, count, lanes(), a.upper_out + first * classes());
    });
  }

  void votes(const Votes& a, int threads, float* const* memory) const override {
    const int64_t total = a.images * a.samples;
    in_team(threads, (total + lanes() - 1) / lanes(), memory, [&](const Workspace& w, int64_t block) {
      const int64_t first = block * lanes(), count = least(lanes(), total - first);
      draw(a, w, first, count);
      run_layers(w, count, w.logits, false);
      for (int64_t lane = 0; lane < count; ++lane) {
        const int64_t winner = largest(w.logits + lane * classes());
        if (winner < 0) continue;
        int64_t& votes = a.counts[(first + lane) / a.samples * classes() + winner];
#pragma omp atomic
        ++votes;
      }
    });
  }

  // --- of a block, for what is served in it ---

  int64_t dim() const { return plan_.values[0].size(); }
  int64_t classes() const { return plan_.values[plan_.count].c; }

  void forward(const Workspace& w, const float* x, int64_t count, float* logits, bool gradient) const {
    to_lanes(in_places_, x, count, lanes(), w.value[0]);
    run_layers(w, count, logits, gradient);
  }

  // From the value that stands there already.
  void run_layers(const Workspace& w, int64_t count, float* logits, bool gradient) const {
    const Block block{w.value.data(), w.gradient.data(), gradient ? w.mask.data() : nullptr, w.scratch};
    for (int64_t i = 0; i < layers_.size(); ++i) layers_[i]->forward(block);
    to_rows(out_places_, w.value[plan_.count], count, lanes(), logits);
  }

  // The loss of rows of logits; its gradient goes to w.slope.
  void lose(const Workspace& w, LogitLoss a, int64_t count, const float* logits) const {
    a.logits = logits;
    a.dtype = DType::f32;
    a.batch = count;
    a.classes = classes();
    a.grad = w.slope;
    cpu::FR_ISA::logit_loss(a, 1);
  }

  void backward(const Workspace& w, int64_t count, float* grad) const {
    const Block block{w.value.data(), w.gradient.data(), w.mask.data(), w.scratch};
    float* seed = w.gradient[plan_.count];
    to_lanes(out_places_, w.slope, count, lanes(), seed);
    if (plan_.ops[plan_.count - 1].relu)
      apply_mask(layouts_[plan_.count], block.slope(static_cast<int>(plan_.count), {false, true}));
    for (int64_t i = layers_.size(); i-- > 0;) layers_[i]->backward(block);
    to_rows(in_places_, w.gradient[0], count, lanes(), grad);
  }

 private:
  using Lanes = cpu::FR_ISA::Lanes;

  // Noisy copies first .. first + count - 1, counted image by image, into a block; lanes beyond repeat the last.
  void draw(const Votes& a, const Workspace& w, int64_t first, int64_t count) const {
    static_assert(Lanes::kCount == kVector);
    const float scale = static_cast<float>(a.scale);
    float* out = w.value[0];
    for (int64_t begin = 0; begin < lanes(); begin += kVector) {
      const float* x[kVector];
      Lanes::Words sample, index;
      bool alike = true;
      for (int l = 0; l < kVector; ++l) {
        const int64_t copy = first + least(begin + l, count - 1), image = copy / a.samples;
        x[l] = a.x + image * dim();
        sample[l] = static_cast<uint32_t>(a.first + copy % a.samples);
        index[l] = static_cast<uint32_t>(a.index[image]);
        alike = alike && x[l] == x[0];
      }
      for (int64_t block = 0; 4 * block < dim(); ++block) {
        Lanes::Words words[4];
        philox_lanes<Lanes>(a.seed, Lanes::Words{} + static_cast<uint32_t>(block), sample, index, kNoise, words);
        Lanes::Vec z[4];
        four_draws<Lanes>(a.kind, words, z);
        for (int64_t i = 4 * block, k = 0; i < least(4 * block + 4, dim()); ++i, ++k) {
          Vec clean = Vec{} + x[0][i];
          for (int l = 0; l < kVector && !alike; ++l) clean[l] = x[l][i];
          const Vec noisy = clean + scale * z[k];
          if (plan_.single)
            out[in_places_[i]] = noisy[0];
          else
            store(out + in_places_[i] + begin, noisy);
        }
      }
    }
  }

  // The first largest of a row of logits, or -1 where there is a NaN.
  int64_t largest(const float* logits) const {
    int64_t best = 0;
    for (int64_t i = 0; i < classes(); ++i) {
      if (logits[i] != logits[i]) return -1;
      if (logits[i] > logits[best]) best = i;
    }
    return best;
  }

  // item(workspace, i) for i in 0 .. count - 1, in threads with a memory each.
  template <class Item>
  void in_team(int threads, int64_t count, float* const* memory, const Item& item) const {
    int next = 0;
    const auto make = [&] {
      int own;
#pragma omp atomic capture
      own = next++;
      return divide(memory[own]);
    };
    cpu::FR_ISA::in_team(threads, count, make, item);
  }

  Workspace divide(float* at) const {
    Workspace w;
    const auto take = [&](int64_t n) {
      float* here = at;
      at += n;
      return here;
    };
    for (int64_t v = 0; v <= plan_.count; ++v) {
      w.value.push(memory_->value(at, v));
      w.gradient.push(memory_->gradient(at, v));
      w.mask.push(memory_->mask(at, v));
    }
    take(memory_->floats());
    w.scratch = take(scratch_);
    w.logits = take(lanes() * classes());
    w.slope = take(lanes() * classes());
    w.reference = take(lanes() * classes());
    for (float** rows : {&w.rows, &w.x, &w.x_adv, &w.earlier}) *rows = take(lanes() * dim());
    return w;
  }

  Plan plan_;
  Layout* layouts_;
  Array<int64_t> in_places_, out_places_;
  Array<Layer*> layers_;
  Memory* memory_;
  int64_t scratch_ = 0;  // floats that the most demanding layer needs
};

}  // namespace

Body* make(const Plan& plan) { return new Blocks(plan); }
double rate(int threads, int64_t rounds) { return multiply_adds(threads, rounds); }

}  // namespace fastrobust::engine::FR_ISA
