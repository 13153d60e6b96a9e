// The step of FAB (Croce and Hein, ICML 2020): onto the linearised decision boundary, within the box.
#pragma once
#include "fastrobust/types.h"

namespace fastrobust {

// Arrays are dense; sample b is the `dim` elements from b * dim. The boundary near x is <slope, z - x> = -lead. `here`
// and `there` are the least steps onto it, within the box, from x and from the centre; out is a mean of
// x + eta here and centre + eta there, with a weight for the second of at most most_back, clipped to the box.
struct FabStep {
  float* out;
  const float *x, *centre, *slope;
  const float* lead;        // (batch,)
  const float *low, *high;  // the box, (dim,)
  int64_t batch, dim;
  Norm norm;  // linf or l2
  double eta, most_back;
};

namespace cpu {
Status fab_step(const FabStep& args, int threads);
}

}  // namespace fastrobust
