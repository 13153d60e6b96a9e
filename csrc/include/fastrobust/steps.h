// Parts of attack steps beyond pgd_step, for float32 rows on the CPU.
//
// Arrays are dense; sample b is the `dim` elements from b * dim. `low` and `high` are the box, (dim,).
#pragma once
#include "fastrobust/perturb.h"

namespace fastrobust {

// The step of FAB (Croce and Hein, ICML 2020): onto the linearised decision boundary, within the box.
//
// The boundary near x is <slope, z - x> = -lead. `here` and `there` are the least steps onto it, within the box, from x
// and from the centre; out is a mean of x + eta here and centre + eta there, with a weight for the second of at most
// most_back, clipped to the box.
struct FabStep {
  float* out;
  const float *x, *centre, *slope;
  const float* lead;  // (batch,)
  const float *low, *high;
  int64_t batch, dim;
  Norm norm;  // linf or l2
  double eta, most_back;
};

// The step of Auto-PGD (Croce and Hein, ICML 2020): one along the gradient, mixed with the move made before.
//
// A sample that goes `back` starts from `best` with the gradient found there. With z the PGD step of x, x moves to the
// projection of x + share (z - x) + (1 - share) (x - old). On return x is what the step started from and `old` holds
// the new iterate. `bad`: whether the sample's `slope` is zero throughout or holds a NaN or an infinity.
struct ApgdStep {
  float *x, *old;
  const float *centre, *slope, *best, *best_slope;
  const bool* back;                      // (batch,)
  const float *length, *radius, *share;  // (batch,)
  bool* bad;                             // (batch,)
  int64_t batch, dim;
  Ball ball;  // linf or l2; its radius is `radius`
};

// A step of an attack on the norm: y = x + length slope / ||slope||_2; then y itself, or the point of the sphere around
// the centre whose radius is `size` in the direction of y, or the centre moved as y is, but only in the `size`
// coordinates that y moves most (ties included); clipped to the box, unless that is null.
enum class After : int32_t { nothing = 0, sphere = 1, largest = 2 };
struct UnitStep {
  float* out;  // may be x
  const float *x, *centre, *slope;
  const float *length, *size;  // (batch,)
  const float *low, *high;
  int64_t batch, dim;
  After after;
};

// Linf Square (Andriushchenko et al., ECCV 2020): out is `kept` with a window at one of the ball's two ends.
struct SquareStep {
  float* out;
  const float *kept, *lower, *upper;
  const int64_t *plan, *at;         // row `at`[b] of sample b's plan: row, column, 2 unused, 1 unused, a bit a channel
  int64_t plans, words;             // rows of a sample's plan, and what is in one
  const int64_t* query;             // (batch,) number of the query: which window
  const int64_t *heights, *widths;  // by the number of the query
  int64_t batch, channels, rows, columns;
};

// x of the samples flagged in `rows`: centre + share (x - centre), clipped to the box.
struct DrawBack {
  float* x;
  const float* centre;
  const bool* rows;
  const float *low, *high;
  int64_t batch, dim;
  float share;
};

// The norms of a - b, or of a where b is null, summed in double. NaN where there is a NaN.
enum class Measure : int32_t { linf = 0, l2 = 1, l1 = 2, l0 = 3 };
struct Norms {
  double* out;  // (batch,)
  const float *a, *b;
  int64_t batch, dim;
  Measure measure;
};

namespace cpu {

struct Steps {
  Status (*fab)(const FabStep&, int threads);
  Status (*apgd)(const ApgdStep&, int threads);
  Status (*unit)(const UnitStep&, int threads);
  Status (*square)(const SquareStep&, int threads);
  Status (*draw_back)(const DrawBack&, int threads);
  Status (*norms)(const Norms&, int threads);
};
const Steps& steps();

}  // namespace cpu

}  // namespace fastrobust
