// Samples, what is asked about them, and the demands that the checks make.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "tapes.h"

namespace fuzz {

using engine::Engine;
using Floats = std::vector<float>;
using Whole = std::vector<int64_t>;

#if defined(__SANITIZE_THREAD__)
constexpr int kMostThreads = 1;  // ThreadSanitizer does not see what GNU's OpenMP waits for
#else
constexpr int kMostThreads = 3;
#endif

void tell_seed();
struct Tally {
  int64_t compared = 0, skipped = 0, refused = 0, ran = 0;
  double logits = 0, gradients = 0;  // largest errors, in units of what is allowed
};
inline Tally tally;

#define MUST(condition, ...)                                               \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
      fuzz::tell_seed();                                                   \
      std::_Exit(1);                                                       \
    }                                                                      \
  } while (0)

// Bit for bit, but one NaN is as good as another.
inline bool same(const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(float)) && !(a[i] != a[i] && b[i] != b[i])) return false;
  }
  return true;
}

struct Flags {  // bools side by side, which std::vector does not have
  std::unique_ptr<bool[]> at;
  explicit Flags(int64_t n) : at(new bool[n]()) {}
};

// Samples and what is asked about them. Arrays end where their memory does, for AddressSanitizer to see.
struct Task {
  int64_t batch, dim, classes;
  Floats x, reference;
  Whole label, target;
  LogitLoss loss{};  // without addresses

  LogitLoss bound() const {
    LogitLoss a = loss;
    a.label = label.data();
    a.target = target.empty() ? nullptr : target.data();
    a.reference = reference.empty() ? nullptr : reference.data();
    return a;
  }
  Task pick(const Whole& order) const {
    Task t{static_cast<int64_t>(order.size()), dim, classes, {}, {}, {}, {}, loss};
    const auto rows = [&](const Floats& from, int64_t n, Floats* to) {
      for (int64_t i : order) {
        if (!from.empty()) to->insert(to->end(), from.begin() + i * n, from.begin() + (i + 1) * n);
      }
    };
    rows(x, dim, &t.x);
    rows(reference, classes, &t.reference);
    for (int64_t i : order) {
      t.label.push_back(label[i]);
      if (!target.empty()) t.target.push_back(target[i]);
    }
    return t;
  }
};

struct Outcome {
  Floats logits, grad, loss;
  Whole prediction;
  Flags correct;
  explicit Outcome(const Task& t)
      : logits(t.batch * t.classes), grad(t.batch * t.dim), loss(t.batch), prediction(t.batch), correct(t.batch) {}
};

inline Outcome run(const Engine& engine, const Task& task, int threads) {
  Outcome o(task);
  LogitLoss a = task.bound();
  a.loss = o.loss.data();
  a.prediction = o.prediction.data();
  a.correct = o.correct.at.get();
  const engine::Pass pass{task.x.data(), task.batch, o.logits.data(), &a, o.grad.data()};
  MUST(engine.run(pass, threads) == Status::ok, "a pass");
  return o;
}

Task draw_task(const Tape& tape, Draws& d);
void check_passes(const Net& net, const Engine& engine, const Task& task, Draws& d);
void check_attack(const Engine& engine, const Task& task, Draws& d);
void check_boxes(const Net& net, const Engine& engine, const Task& task, Draws& d);
void check_votes(const Engine& engine, const Task& task, Draws& d);

}  // namespace fuzz
