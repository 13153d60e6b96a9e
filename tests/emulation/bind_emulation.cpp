// _C_emulated: the ops of fastrobust._C_cuda on the CPU, kernels emulated, so that Python's tests can run them.
#include "bind.h"
#include "bind_engine.h"
#include "bind_interval.h"
#include "bind_noise.h"
#include "cuda_emulation.h"
#include "fastrobust/mlp.h"

using namespace fastrobust;

PYBIND11_MODULE(_C_emulated, m) {
  m.doc() = "fastrobust's CUDA kernels, emulated on the CPU: for tests, slow, one call at a time.";
  bind_ops(m, cuda::pgd_step, cuda::random_start, cuda::logit_loss);
  bind_interval<void*>(m, cuda::interval_block, cuda::interval_block_backward, cuda::interval_margins,
                       cuda::interval_margins_backward);
  bind_crown<void*>(m, cuda::crown_lines, cuda::crown_lines_backward);
  bind_noise<void*>(m, cuda::noisy_copies, cuda::add_votes);
  bind_engine<cuda::MlpEngine, void*>(m, cuda::make_mlp);
  m.def(
      "set_order", [](int order) { emulation::options().order = static_cast<emulation::Order>(order); },
      "In which order threads run: 0 forward, 1 reverse, 2 shuffled.");
}
