// The CPU's baseline body, which the emulated kernels are compared with.
#pragma once
#include "fastrobust/crown.h"
#include "fastrobust/interval.h"
#include "fastrobust/logit_loss.h"
#include "fastrobust/noise.h"
#include "fastrobust/perturb.h"

namespace fastrobust::cpu::baseline {
Status pgd_step(const PgdStep&, int threads);
Status random_start(const RandomStart&, int threads);
Status logit_loss(const LogitLoss&, int threads);
Status noisy_copies(const NoisyCopies&, int threads);
Status add_votes(const AddVotes&, int threads);
extern const Interval interval;
extern const Crown crown;
}  // namespace fastrobust::cpu::baseline
