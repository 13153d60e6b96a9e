// Interval bound propagation for training: what lies between two matrix products, and the last layer's margins.
//
// Contract of a block. `points` is dense (rows, channels, size), `radius` (boxes, channels, size); the last `boxes`
// rows of points are the centres of boxes. Numbers per channel are float, double where dtype is f64. With m = s x + t
// and q = |s| r, boxes go to the range of the function on [m - q, m + q], the rows before to its values.
#pragma once
#include "fastrobust/types.h"

namespace fastrobust {

struct IntervalBlock {
  const void *points, *radius;
  DType dtype;
  int64_t rows, boxes, channels, size;
  // stat_rows == 0: s and t are scale and shift (null: 1 and 0). Otherwise with mean and biased variance of the first
  // stat_rows rows s = scale / sqrt(var + eps), t = shift - mean s.
  const void *scale, *shift;
  int64_t stat_rows;
  double eps;
  Function function;
  double a, b;
  void *mean, *var;  // (channels,), where stat_rows > 0: results forwards, given backwards

  void *out, *reach;  // forwards: the results

  const void *grad_out, *grad_reach, *grad_mean, *grad_var;   // backwards: given; the last two may be null
  void *grad_points, *grad_radius, *grad_scale, *grad_shift;  // backwards: the results
  double* work;                                               // on a GPU: interval_work(channels) doubles
};

// Lower bounds of z_y - z_j for z = W x + bias, x within radius of centre: out (batch, classes). A row whose label lies
// outside [0, classes) gets NaN, and no gradient. `bias`, `out` and gradients of the bias are float, double where dtype
// is f64.
struct IntervalMargins {
  const void *centre, *radius, *weight, *bias;  // bias may be null
  const int64_t* label;
  DType dtype;
  int64_t batch, features, classes;
  void* out;
  const void* grad;  // backwards: (batch, classes), of the type of out
  void *grad_centre, *grad_radius, *grad_weight, *grad_bias;
};

// out = points W^T and reach = radius |W|^T, float32 on a CPU; W is (outputs, features). Backwards from grad_out and
// grad_reach: the gradients of points and radius, unless both are null, and grad_out^T points + sign(W) (grad_reach^T
// radius), unless null.
struct IntervalLinear {
  const float *points, *radius, *weight;
  int64_t rows, boxes, features, outputs;
  float *out, *reach;
  const float *grad_out, *grad_reach;
  float *grad_points, *grad_radius, *grad_weight;
};

namespace cpu {
struct IntervalLayers {
  Status (*linear)(const IntervalLinear&, int threads);
  Status (*linear_backward)(const IntervalLinear&, int threads);
};
const IntervalLayers& interval_layers();

struct Interval {
  Status (*block)(const IntervalBlock&, int threads);
  Status (*block_backward)(const IntervalBlock&, int threads);
  Status (*margins)(const IntervalMargins&, int threads);
  Status (*margins_backward)(const IntervalMargins&, int threads);
};
const Interval& interval();
}  // namespace cpu
namespace cuda {
Status interval_block(const IntervalBlock&, void* stream);
Status interval_block_backward(const IntervalBlock&, void* stream);
Status interval_margins(const IntervalMargins&, void* stream);
Status interval_margins_backward(const IntervalMargins&, void* stream);
constexpr int64_t interval_work(int64_t channels) { return 3 * 64 * channels; }  // kSums sums for each of kParts parts
}  // namespace cuda

}  // namespace fastrobust
