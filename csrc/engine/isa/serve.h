// PGD on many samples in one block: each has a lane until it is done, and the next one takes its place.
#pragma once
#include "block.h"

namespace fastrobust::cpu::FR_ISA {
Status pgd_step(const PgdStep&, int threads);
}  // namespace fastrobust::cpu::FR_ISA

namespace fastrobust::engine::FR_ISA {

// A thread's memory, divided.
struct Workspace {
  Array<float*> value, gradient;
  Array<Bits*> mask;
  float* scratch;
  float *logits, *slope, *rows, *x, *x_adv, *earlier, *reference;  // of up to 16 samples
};

// A sample under attack in a lane.
struct Guest {
  int64_t sample = -1, steps = 0, patience = 0;
  int64_t end = 0, kept_at = 0;  // steps to make; those made when the iterate was put down in `earlier`
  bool fools = false;            // its best iterate so far, where that is asked for
  float loss = 0;
};

// A step is a function of the iterate, so an iterate that comes back begins a cycle. All of the cycle has then been
// looked at; the last iterate is found by its phase. The one compared with is put down after 1, 2, 4, 8, 16 steps and
// then every 16, the usual cycles being of 2 to 12; later with an eighth of the way made between, so that a cycle of
// any length is found (after Brent, 1980).
inline void look_back(const Attack& a, const float* now, float* earlier, int64_t dim, Guest* guest) {
  const size_t bytes = static_cast<size_t>(dim) * sizeof(float);
  if (guest->kept_at > 0 && memcmp(now, earlier, bytes) == 0) {
    const int64_t period = guest->steps - guest->kept_at;
    const bool all_seen = a.early_stop || a.best;
    guest->end = guest->steps + (all_seen ? 0 : (a.steps - guest->steps) % period);
  } else if (guest->steps - guest->kept_at >= most(least(guest->kept_at, 16), guest->kept_at / 8)) {
    memcpy(earlier, now, bytes);
    guest->kept_at = guest->steps;
  }
}

// Attacks the samples from *next on, together with the other threads, until none is left.
template <class Net>
void serve(const Net& net, const Attack& a, const Workspace& w, int64_t* next) {
  constexpr int kMost = kLanes * kMostTogether;
  const int64_t dim = net.dim(), classes = net.classes();
  const int lanes = net.lanes();
  Guest guests[kMost];
  int64_t label[kMost] = {}, target[kMost] = {}, prediction[kMost];
  int32_t flags[kMost];
  float value[kMost], eps[kMost] = {}, alpha[kMost] = {};
  bool correct[kMost];

  PgdStep step = a.step;
  step.batch = lanes;
  step.x = w.x;
  step.x_adv = step.out = w.x_adv;
  step.grad = w.rows;
  step.step_each = a.step.step_each ? alpha : nullptr;
  step.ball.eps_each = a.step.ball.eps_each ? eps : nullptr;
  step.flags = flags;
  LogitLoss loss = a.loss;
  loss.label = label;
  loss.target = a.loss.target ? target : nullptr;
  loss.reference = a.loss.reference ? w.reference : nullptr;
  loss.loss = value;
  loss.prediction = prediction;
  loss.correct = correct;

  const bool cycles = a.cycles && !(a.early_stop && a.patience > 0);  // where every return may be the last
  const auto admit = [&](int lane, int64_t b) {
    guests[lane] = {b, 0, a.patience, a.steps, 0, false, 0.0f};
    memcpy(w.x + lane * dim, static_cast<const float*>(a.step.x) + b * dim, dim * sizeof(float));
    memcpy(w.x_adv + lane * dim, static_cast<const float*>(a.step.x_adv) + b * dim, dim * sizeof(float));
    label[lane] = a.loss.label[b];
    if (a.loss.target) target[lane] = a.loss.target[b];
    if (a.step.step_each) alpha[lane] = static_cast<const float*>(a.step.step_each)[b];
    if (a.step.ball.eps_each) eps[lane] = static_cast<const float*>(a.step.ball.eps_each)[b];
    if (a.loss.reference) {
      memcpy(w.reference + lane * classes, static_cast<const float*>(a.loss.reference) + b * classes,
             classes * sizeof(float));
    }
  };
  const auto put_down = [&](int lane, bool fooled) {
    const int64_t b = guests[lane].sample;
    memcpy(static_cast<float*>(a.step.out) + b * dim, w.x_adv + lane * dim, dim * sizeof(float));
    if (a.success) a.success[b] = fooled;
    if (a.value) a.value[b] = value[lane];
  };
  const auto dismiss = [&](int lane, bool fooled) {
    if (!a.best) put_down(lane, fooled);
    if (a.taken) a.taken[guests[lane].sample] = guests[lane].steps;
    guests[lane].sample = -1;
  };
  // Lets new samples in; false when the block is empty.
  const auto fill = [&] {
    bool any = false;
    for (int lane = 0; lane < lanes; ++lane) {
      if (guests[lane].sample < 0) {
        int64_t b;
#pragma omp atomic capture
        b = (*next)++;
        if (b < a.step.batch) admit(lane, b);
      }
      any |= guests[lane].sample >= 0;
    }
    return any;
  };

  while (fill()) {
    net.forward(w, w.x_adv, lanes, w.logits, true);
    net.lose(w, loss, lanes, w.logits);
    bool any = false;
    for (int lane = 0; lane < lanes; ++lane) {
      Guest& guest = guests[lane];
      if (guest.sample < 0) continue;
      const int64_t p = prediction[lane];
      const bool fooled = a.loss.target ? p == target[lane] : p >= 0 && p != label[lane];
      if (a.best && (guest.steps == 0 || fooled > guest.fools || (fooled == guest.fools && value[lane] > guest.loss))) {
        put_down(lane, fooled);
        guest.fools = fooled;
        guest.loss = value[lane];
      }
      if (guest.steps == guest.end || (a.early_stop && fooled && guest.patience == 0)) {
        dismiss(lane, fooled);
      } else {
        guest.patience -= fooled && guest.patience > 0;
        any = true;
      }
    }
    if (!any) continue;
    net.backward(w, lanes, w.rows);
    for (int32_t& flag : flags) flag = 0;
    cpu::FR_ISA::pgd_step(step, 1);
    for (int lane = 0; lane < lanes; ++lane) {
      Guest& guest = guests[lane];
      if (guest.sample < 0) continue;
      if (a.step.flags) a.step.flags[guest.sample] += flags[lane] != kUseful;
      ++guest.steps;
      if (cycles && guest.end == a.steps) look_back(a, w.x_adv + lane * dim, w.earlier + lane * dim, dim, &guest);
      if (guest.steps == guest.end && !a.success && !a.best) dismiss(lane, false);
    }
  }
}

}  // namespace fastrobust::engine::FR_ISA
