// fastrobust._C_cuda: the CUDA launchers for Python, and what `fastrobust doctor` asks about the build and the driver.
// Pointers and the stream come as integers (0: absent, or the default stream); nothing here waits for the device.
#include <cuda_runtime_api.h>

#include "bind.h"
#include "bind_engine.h"
#include "bind_interval.h"
#include "bind_noise.h"
#include "fastrobust/mlp.h"

namespace py = pybind11;
using namespace fastrobust;

namespace {

// The oldest Linux driver that runs machine code of this CUDA major version ("minor version compatibility").
const char* minimum_driver() {
  switch (CUDART_VERSION / 1000) {
    case 11:
      return "450.80.02";
    case 12:
      return "525.60.13";
    case 13:
      return "580.65.06";
  }
  return "that of the CUDA toolkit used";
}

int version(cudaError_t (*ask)(int*)) {
  int v = 0;
  return ask(&v) == cudaSuccess ? v : 0;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "fastrobust's CUDA kernels. Call them through fastrobust.ops, which checks the arguments.";
  bind_ops(m, cuda::pgd_step, cuda::random_start, cuda::logit_loss);
  bind_interval<void*>(m, cuda::interval_block, cuda::interval_block_backward, cuda::interval_margins,
                       cuda::interval_margins_backward);
  bind_crown<void*>(m, cuda::crown_lines, cuda::crown_lines_backward);
  bind_noise<void*>(m, cuda::noisy_copies, cuda::add_votes);
  bind_engine<cuda::MlpEngine, void*>(m, cuda::make_mlp);
  m.def("architectures", [] { return FR_CUDA_ARCHS; }, "What the kernels were compiled for, as CMake was told.");
  m.def("runtime_version", [] { return version(cudaRuntimeGetVersion); }, "CUDA runtime linked in; 12080 is 12.8.");
  m.def(
      "driver_version", [] { return version(cudaDriverGetVersion); },
      "The newest CUDA version that the installed driver knows; 0 without a driver.");
  m.def("minimum_driver", minimum_driver, "The oldest driver that runs these kernels.");
  m.def(
      "device_count",
      [] {
        int count = 0;
        const bool known = cudaGetDeviceCount(&count) == cudaSuccess;
        cudaGetLastError();  // a later launch is not blamed for a missing driver
        return known ? count : 0;
      },
      "CUDA devices that the driver shows; 0 without a driver.");
}
