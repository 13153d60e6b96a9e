// Linear functions of an activation's result brought to its input, without regard to rounding: for training.
//
// Contract. `weight` is dense (batch, rows, size), the lines (batch, size), float32 or float64. Where a weight is
// positive the activation is above low_slope x + low, elsewhere below high_slope x + high, so that <weight, y> is at
// least <moved, x> + constant, with moved = weight * slope and constant the sum of weight * intercept.
#pragma once
#include "fastrobust/types.h"

namespace fastrobust {

struct CrownLines {
  const void *weight, *low_slope, *low, *high_slope, *high;
  DType dtype;
  int64_t batch, rows, size;
  void* moved;       // forwards: (batch, rows, size)
  double* constant;  // forwards: (batch, rows)
  const void* grad_moved;
  const double* grad_constant;
  void *grad_weight, *grad_low_slope, *grad_low, *grad_high_slope, *grad_high;  // backwards
};

namespace cpu {
struct Crown {
  Status (*lines)(const CrownLines&, int threads);
  Status (*lines_backward)(const CrownLines&, int threads);
};
const Crown& crown();
}  // namespace cpu
namespace cuda {
Status crown_lines(const CrownLines&, void* stream);
Status crown_lines_backward(const CrownLines&, void* stream);
}  // namespace cuda

}  // namespace fastrobust
