// Which instruction set runs: the best this processor has, or the one that FASTROBUST_ISA names.
#include "fastrobust/dispatch.h"

#include <cstdlib>
#include <cstring>

#include "engine/body.h"
#include "fastrobust/crown.h"
#include "fastrobust/interval.h"
#include "fastrobust/logit_loss.h"
#include "fastrobust/noise.h"
#include "fastrobust/perturb.h"
#include "fastrobust/steps.h"

#define FR_DECLARE(isa)                         \
  namespace fastrobust::cpu::isa {              \
  Status pgd_step(const PgdStep&, int);         \
  Status random_start(const RandomStart&, int); \
  Status logit_loss(const LogitLoss&, int);     \
  Status noisy_copies(const NoisyCopies&, int); \
  Status add_votes(const AddVotes&, int);       \
  extern const Steps steps;                     \
  extern const Interval interval;               \
  extern const IntervalLayers interval_layers;  \
  extern const Crown crown;                     \
  }                                             \
  namespace fastrobust::engine::isa {           \
  Body* make(const Plan&);                      \
  Status transpose(const Transpose&, int);      \
  double rate(int, int64_t);                    \
  }
FR_DECLARE(baseline)
#ifdef FR_HAVE_AVX2
FR_DECLARE(avx2)
#endif
#ifdef FR_HAVE_AVX512
FR_DECLARE(avx512)
#endif

namespace fastrobust::cpu {
namespace {

struct Body {
  const char* name;
  bool supported;
  Status (*pgd_step)(const PgdStep&, int);
  Status (*random_start)(const RandomStart&, int);
  Status (*logit_loss)(const LogitLoss&, int);
  Status (*noisy_copies)(const NoisyCopies&, int);
  Status (*add_votes)(const AddVotes&, int);
  const Steps* steps;
  const Interval* interval;
  const IntervalLayers* interval_layers;
  const Crown* crown;
  engine::Body* (*make)(const engine::Plan&);
  Status (*transpose)(const engine::Transpose&, int);
  double (*rate)(int, int64_t);
};

#define FR_BODY(isa, supported) \
  {#isa,                        \
   supported,                   \
   isa::pgd_step,               \
   isa::random_start,           \
   isa::logit_loss,             \
   isa::noisy_copies,           \
   isa::add_votes,              \
   &isa::steps,                 \
   &isa::interval,              \
   &isa::interval_layers,       \
   &isa::crown,                 \
   engine::isa::make,           \
   engine::isa::transpose,      \
   engine::isa::rate}

const Body* bodies(int* count) {
  static const Body all[] = {
#ifdef FR_HAVE_AVX512
      FR_BODY(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
#endif
#ifdef FR_HAVE_AVX2
      FR_BODY(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
#endif
      FR_BODY(baseline, true),
  };
  *count = sizeof(all) / sizeof(all[0]);
  return all;
}

const Body* chosen = nullptr;

const Body& body() {
  if (!chosen) select_isa(std::getenv("FASTROBUST_ISA"));
  return *chosen;
}

}  // namespace

const char* isa_name(int i) {
  int count;
  const Body* all = bodies(&count);
  return i >= 0 && i < count && all[i].supported ? all[i].name : (i >= 0 && i < count ? "" : nullptr);
}

bool select_isa(const char* name) {
  int count;
  const Body* all = bodies(&count);
  const bool automatic = !name || !*name || !std::strcmp(name, "auto");
  for (int i = 0; i < count; ++i) {
    if (all[i].supported && (automatic || !std::strcmp(name, all[i].name))) {
      chosen = &all[i];
      return true;
    }
  }
  if (!chosen) chosen = &all[count - 1];
  return false;
}

const char* current_isa() { return body().name; }

Status pgd_step(const PgdStep& args, int threads) { return body().pgd_step(args, threads); }
Status random_start(const RandomStart& args, int threads) { return body().random_start(args, threads); }
Status logit_loss(const LogitLoss& args, int threads) { return body().logit_loss(args, threads); }
Status noisy_copies(const NoisyCopies& args, int threads) { return body().noisy_copies(args, threads); }
Status add_votes(const AddVotes& args, int threads) { return body().add_votes(args, threads); }
const Steps& steps() { return *body().steps; }
const Interval& interval() { return *body().interval; }
const Crown& crown() { return *body().crown; }
const IntervalLayers& interval_layers() { return *body().interval_layers; }

engine::Body* make_engine(const engine::Plan& plan) { return body().make(plan); }
Status transpose(const engine::Transpose& args, int threads) { return body().transpose(args, threads); }
double multiply_adds(int threads, int64_t rounds) { return body().rate(threads, rounds); }

}  // namespace fastrobust::cpu
