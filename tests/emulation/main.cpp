// Runs every check of the emulated kernels; the exit code says whether all held.
#include <ctime>

#include "check.h"
#include "cpu_body.h"

void check_linf();
void check_rows();
void check_logit();
void check_interval();
void check_noise();
void check_mlp();

namespace {

using namespace fastrobust;
using check::stream;

void check_launchers() {
  PgdStep step{};
  RandomStart start{};
  LogitLoss loss{};
  NoisyCopies copies{};
  AddVotes votes{};
  EXPECT(cuda::pgd_step(step, stream()) == Status::ok, "an empty batch");
  EXPECT(cuda::random_start(start, stream()) == Status::ok, "an empty batch");
  EXPECT(cuda::logit_loss(loss, stream()) == Status::ok, "an empty batch");
  EXPECT(cuda::noisy_copies(copies, stream()) == Status::ok, "an empty batch");
  EXPECT(cuda::add_votes(votes, stream()) == Status::ok, "an empty batch");
  step.batch = start.batch = 3;
  EXPECT(cuda::pgd_step(step, stream()) == Status::ok, "no elements");
  EXPECT(cuda::random_start(start, stream()) == Status::ok, "no elements");
  check::expect_launches({});

  step.dtype = start.dtype = DType::f16;
  loss.dtype = static_cast<DType>(9);
  EXPECT(cuda::pgd_step(step, stream()) == Status::bad_dtype, "an iterate in half precision");
  EXPECT(cuda::random_start(start, stream()) == Status::bad_dtype, "an iterate in half precision");
  EXPECT(cuda::logit_loss(loss, stream()) == Status::bad_dtype, "an unknown dtype");
  copies.slots = copies.dim = votes.slots = votes.classes = 1;
  copies.dtype = DType::f16;
  votes.dtype = static_cast<DType>(9);
  EXPECT(cuda::noisy_copies(copies, stream()) == Status::bad_dtype, "an input in half precision");
  copies.dtype = DType::f32;
  copies.out_dtype = DType::f64;
  EXPECT(cuda::noisy_copies(copies, stream()) == Status::bad_dtype, "a wider output");
  EXPECT(cuda::add_votes(votes, stream()) == Status::bad_dtype, "an unknown dtype");
  step.dtype = DType::f32;
  step.dim = 1;
  float pixels[3] = {};
  step.out = pixels;
  step.x = step.x_adv = step.grad = pixels;
  for (Norm norm : {Norm::linf, Norm::l2}) {
    step.grad_dtype = static_cast<DType>(9);
    step.ball.norm = norm;
    EXPECT(cuda::pgd_step(step, stream()) == Status::bad_dtype, "an unknown gradient dtype");
  }
  check::expect_launches({});

  step.grad_dtype = DType::f32;
  step.ball.norm = Norm::l2;
  emulation::last_error() = cudaErrorInvalidConfiguration;  // as if the launch had failed
  EXPECT(cuda::pgd_step(step, stream()) == Status::launch_failed, "a failed launch");
  EXPECT(cuda::pgd_step(step, stream()) == Status::ok, "the launch after a failed one");
  emulation::launches().clear();
}

}  // namespace

// The checks named on the command line, or all.
int main(int count, char** names) {
  const std::pair<const char*, void (*)()> all[] = {
      {"launchers", check_launchers}, {"linf", check_linf},   {"rows", check_rows}, {"logit", check_logit},
      {"interval", check_interval},   {"noise", check_noise}, {"mlp", check_mlp}};
  for (const auto& [name, run] : all) {
    bool wanted = count < 2;
    for (int i = 1; i < count; ++i) wanted |= !std::strcmp(names[i], name);
    if (!wanted) continue;
    const std::clock_t before = std::clock();
    try {
      run();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s: %s\n", name, e.what());
      ++check::failures();
    }
    std::printf("%s: %s, %.1f s\n", name, check::failures() ? "failed" : "passed",
                double(std::clock() - before) / CLOCKS_PER_SEC);
    std::fflush(stdout);
    if (check::failures()) return 1;
  }
  return 0;
}
