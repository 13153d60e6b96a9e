// Attack losses from logits: value, prediction, whether it is right, and d loss / d logits, in one pass.
//
// Contract. `logits`, `reference` and `grad` are dense (batch, classes) of type `dtype`; `loss` has type f64 when
// dtype is f64 and f32 otherwise. A row whose label or target lies outside [0, classes) gets loss NaN, gradient 0
// and correct = false, and is counted in *invalid. A row with a NaN logit gets prediction -1.
#pragma once
#include "fastrobust/types.h"

namespace fastrobust {

enum class Loss : int32_t { ce = 0, kl = 1, margin = 2, dlr = 3, dlr_targeted = 4, linear = 5 };

struct LogitLoss {
  const void* logits;
  DType dtype;
  int64_t batch, classes;
  Loss kind;
  const int64_t* label;   // (batch,)
  const int64_t* target;  // (batch,) or null; with ce and margin the loss then rises towards the target
  const void* reference;  // kl: the logits of the distribution to move away from; linear: coefficients
  double smoothing;       // ce only: label smoothing in [0, 1)
  void* loss;             // (batch,)
  int64_t* prediction;    // (batch,)
  bool* correct;          // (batch,)
  void* grad;             // (batch, classes)
  int32_t* invalid;       // one counter or null
};

namespace cpu {
constexpr int64_t kSmallLoss = 4096;  // logits that are not worth waking a second thread
Status logit_loss(const LogitLoss& args, int threads);
}  // namespace cpu
namespace cuda {
Status logit_loss(const LogitLoss& args, void* stream);
}  // namespace cuda

}  // namespace fastrobust
