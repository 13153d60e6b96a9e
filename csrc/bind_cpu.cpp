// fastrobust._C: the CPU launchers for Python. Pointers come as integers (0: absent); the GIL is released.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "bind.h"
#include "bind_engine.h"
#include "bind_interval.h"
#include "bind_noise.h"
#include "bind_steps.h"
#include "fastrobust/dispatch.h"
#include "plain.h"

namespace py = pybind11;
using namespace fastrobust;

namespace {

void bind_interval_layers(pybind11::module_& m) {
  using Floats = Address;
  const auto layer = [](Floats points, Floats radius, Floats weight, int64_t rows, int64_t boxes, int64_t features,
                        int64_t outputs) {
    IntervalLinear args{};
    args.points = pointer<float>(points), args.radius = pointer<float>(radius), args.weight = pointer<float>(weight);
    args.rows = rows, args.boxes = boxes, args.features = features, args.outputs = outputs;
    return args;
  };
  m.def("interval_linear", [layer](Floats points, Floats radius, Floats weight, int64_t rows, int64_t boxes,
                                   int64_t features, int64_t outputs, Floats out, Floats reach, int threads) {
    IntervalLinear args = layer(points, radius, weight, rows, boxes, features, outputs);
    args.out = pointer<float>(out), args.reach = pointer<float>(reach);
    run_interval(cpu::interval_layers().linear, args, threads);
  });
  m.def("interval_linear_backward", [layer](Floats points, Floats radius, Floats weight, int64_t rows, int64_t boxes,
                                            int64_t features, int64_t outputs, Floats grad_out, Floats grad_reach,
                                            Floats grad_points, Floats grad_radius, Floats grad_weight, int threads) {
    IntervalLinear args = layer(points, radius, weight, rows, boxes, features, outputs);
    args.grad_out = pointer<float>(grad_out), args.grad_reach = pointer<float>(grad_reach);
    args.grad_points = pointer<float>(grad_points), args.grad_radius = pointer<float>(grad_radius);
    args.grad_weight = pointer<float>(grad_weight);
    run_interval(cpu::interval_layers().linear_backward, args, threads);
  });
}

void bind_transposed(pybind11::module_& m) {
  using Pair = std::pair<int64_t, int64_t>;
  using Triple = std::tuple<int64_t, int64_t, int64_t>;
  m.def("convolution_transposed",
        [](Address rows, Address weight, Address result, int64_t count, Triple in, Triple out, Pair kernel, Pair stride,
           Pair padding, Pair dilation, int64_t groups, int threads) {
          engine::Transpose args{};
          engine::Op& op = args.op;
          op.kind = engine::Kind::contract;
          std::tie(op.kh, op.kw) = kernel;
          std::tie(op.stride_h, op.stride_w) = stride;
          std::tie(op.pad_h, op.pad_w) = padding;
          std::tie(op.dilation_h, op.dilation_w) = dilation;
          op.groups = groups;
          std::tie(args.in.c, args.in.h, args.in.w) = in;
          std::tie(args.out.c, args.out.h, args.out.w) = out;
          args.weight = pointer<const float>(weight), args.rows = pointer<const float>(rows);
          args.count = count, args.result = pointer<float>(result);
          run_interval(cpu::transpose, args, threads);
        });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastrobust's CPU kernels. Call them through fastrobust.ops, which checks the arguments.";
  PyModule_AddFunctions(m.ptr(), plain::methods);
  m.def(
      "setup", plain::setup, py::arg("tensor"), py::arg("dtypes"), py::arg("threads"), py::arg("intercepting"),
      "Hand over torch.Tensor, its dtypes, get_num_threads, and functions that say 0 or None while no mode is active.");
  bind_ops(m, cpu::pgd_step, cpu::random_start, cpu::logit_loss);
  bind_noise<int>(m, cpu::noisy_copies, cpu::add_votes);
  bind_engine<engine::Engine, int>(m, engine::make);
  bind_steps(m);
  bind_interval_layers(m);
  bind_transposed(m);
  bind_crown<int>(
      m, [](const CrownLines& a, int threads) { return cpu::crown().lines(a, threads); },
      [](const CrownLines& a, int threads) { return cpu::crown().lines_backward(a, threads); });
  bind_interval<int>(
      m, [](const IntervalBlock& a, int threads) { return cpu::interval().block(a, threads); },
      [](const IntervalBlock& a, int threads) { return cpu::interval().block_backward(a, threads); },
      [](const IntervalMargins& a, int threads) { return cpu::interval().margins(a, threads); },
      [](const IntervalMargins& a, int threads) { return cpu::interval().margins_backward(a, threads); });
  m.def(
      "isas",
      [] {
        py::dict built;
        for (int i = 0; cpu::isa_name(i); ++i) {
          if (*cpu::isa_name(i)) built[py::str(cpu::isa_name(i))] = true;
        }
        py::list names;
        for (auto item : built) names.append(item.first);
        return names;
      },
      "Instruction sets that this build has and this processor supports, best first.");
  m.def("multiply_adds", &cpu::multiply_adds, py::arg("threads"), py::arg("rounds"),
        "Multiplies and adds at full speed; returns the number of operations.");
  m.def(
      "own_threads",
      [](int count) {
#ifdef _OPENMP
        omp_set_num_threads(count);
#else
        (void)count;
#endif
      },
      py::arg("count"),
      "How many threads loops started from this thread use, PyTorch's among them; no other thread's.");
  m.def("isa", [] { return cpu::current_isa(); }, "The instruction set in use.");
  m.def(
      "select_isa", [](const char* name) { return cpu::select_isa(name); }, py::arg("name"),
      "Use the bodies compiled for `name`; False if this build or this processor lacks it.");
}
