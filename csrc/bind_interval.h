// Interval propagation, the same for CPU and CUDA: arrays come as integers.
#pragma once
#include "bind.h"
#include "fastrobust/crown.h"
#include "fastrobust/interval.h"

namespace fastrobust {

template <class Args, class Where>
void run_interval(Status (*launch)(const Args&, Where), const Args& args, Where to) {
  Status status;
  {
    pybind11::gil_scoped_release release;
    status = launch(args, to);
  }
  check(status);
}

template <class Where>
void bind_interval(pybind11::module_& m, Status (*block)(const IntervalBlock&, Where),
                   Status (*block_backward)(const IntervalBlock&, Where),
                   Status (*margins)(const IntervalMargins&, Where),
                   Status (*margins_backward)(const IntervalMargins&, Where)) {
  using Raw = std::conditional_t<std::is_pointer_v<Where>, Address, int>;
  const auto at = [](Raw to) { return where(to, static_cast<Where*>(nullptr)); };
  const auto begin = [](Address points, Address radius, int dtype, int64_t rows, int64_t boxes, int64_t channels,
                        int64_t size, Address scale, Address shift, int64_t stat_rows, double eps, int function,
                        double a, double b, Address mean, Address var, Address work) {
    IntervalBlock args{};
    args.points = pointer<void>(points), args.radius = pointer<void>(radius);
    args.dtype = static_cast<DType>(dtype);
    args.rows = rows, args.boxes = boxes, args.channels = channels, args.size = size;
    args.scale = pointer<void>(scale), args.shift = pointer<void>(shift);
    args.stat_rows = stat_rows, args.eps = eps, args.function = static_cast<Function>(function);
    args.a = a, args.b = b, args.mean = pointer<void>(mean), args.var = pointer<void>(var);
    args.work = pointer<double>(work);
    return args;
  };
  m.def(
      "interval_work", [](int64_t channels) { return std::is_pointer_v<Where> ? cuda::interval_work(channels) : 0; },
      "Doubles of memory that a block needs beside its arrays.");
  m.def("interval_block",
        [=](Address points, Address radius, int dtype, int64_t rows, int64_t boxes, int64_t channels, int64_t size,
            Address scale, Address shift, int64_t stat_rows, double eps, int function, double a, double b, Address mean,
            Address var, Address work, Address out, Address reach, Raw to) {
          IntervalBlock args = begin(points, radius, dtype, rows, boxes, channels, size, scale, shift, stat_rows, eps,
                                     function, a, b, mean, var, work);
          args.out = pointer<void>(out), args.reach = pointer<void>(reach);
          run_interval(block, args, at(to));
        });
  m.def("interval_block_backward",
        [=](Address points, Address radius, int dtype, int64_t rows, int64_t boxes, int64_t channels, int64_t size,
            Address scale, Address shift, int64_t stat_rows, double eps, int function, double a, double b, Address mean,
            Address var, Address work, Address grad_out, Address grad_reach, Address grad_mean, Address grad_var,
            Address grad_points, Address grad_radius, Address grad_scale, Address grad_shift, Raw to) {
          IntervalBlock args = begin(points, radius, dtype, rows, boxes, channels, size, scale, shift, stat_rows, eps,
                                     function, a, b, mean, var, work);
          args.grad_out = pointer<void>(grad_out), args.grad_reach = pointer<void>(grad_reach);
          args.grad_mean = pointer<void>(grad_mean), args.grad_var = pointer<void>(grad_var);
          args.grad_points = pointer<void>(grad_points), args.grad_radius = pointer<void>(grad_radius);
          args.grad_scale = pointer<void>(grad_scale), args.grad_shift = pointer<void>(grad_shift);
          run_interval(block_backward, args, at(to));
        });
  const auto head = [](Address centre, Address radius, Address weight, Address bias, Address label, int dtype,
                       int64_t batch, int64_t features, int64_t classes) {
    IntervalMargins args{};
    args.centre = pointer<void>(centre), args.radius = pointer<void>(radius), args.weight = pointer<void>(weight);
    args.bias = pointer<void>(bias), args.label = pointer<int64_t>(label), args.dtype = static_cast<DType>(dtype);
    args.batch = batch, args.features = features, args.classes = classes;
    return args;
  };
  m.def("interval_margins", [=](Address centre, Address radius, Address weight, Address bias, Address label, int dtype,
                                int64_t batch, int64_t features, int64_t classes, Address out, Raw to) {
    IntervalMargins args = head(centre, radius, weight, bias, label, dtype, batch, features, classes);
    args.out = pointer<void>(out);
    run_interval(margins, args, at(to));
  });
  m.def("interval_margins_backward",
        [=](Address centre, Address radius, Address weight, Address label, int dtype, int64_t batch, int64_t features,
            int64_t classes, Address grad, Address grad_centre, Address grad_radius, Address grad_weight,
            Address grad_bias, Raw to) {
          IntervalMargins args = head(centre, radius, weight, 0, label, dtype, batch, features, classes);
          args.grad = pointer<void>(grad);
          args.grad_centre = pointer<void>(grad_centre), args.grad_radius = pointer<void>(grad_radius);
          args.grad_weight = pointer<void>(grad_weight), args.grad_bias = pointer<void>(grad_bias);
          run_interval(margins_backward, args, at(to));
        });
}

template <class Where>
void bind_crown(pybind11::module_& m, Status (*lines)(const CrownLines&, Where),
                Status (*lines_backward)(const CrownLines&, Where)) {
  using Raw = std::conditional_t<std::is_pointer_v<Where>, Address, int>;
  const auto begin = [](Address weight, Address low_slope, Address low, Address high_slope, Address high, int dtype,
                        int64_t batch, int64_t rows, int64_t size) {
    CrownLines args{};
    args.weight = pointer<void>(weight), args.low_slope = pointer<void>(low_slope), args.low = pointer<void>(low);
    args.high_slope = pointer<void>(high_slope), args.high = pointer<void>(high);
    args.dtype = static_cast<DType>(dtype), args.batch = batch, args.rows = rows, args.size = size;
    return args;
  };
  m.def("crown_lines", [=](Address weight, Address low_slope, Address low, Address high_slope, Address high, int dtype,
                           int64_t batch, int64_t rows, int64_t size, Address moved, Address constant, Raw to) {
    CrownLines args = begin(weight, low_slope, low, high_slope, high, dtype, batch, rows, size);
    args.moved = pointer<void>(moved), args.constant = pointer<double>(constant);
    run_interval(lines, args, where(to, static_cast<Where*>(nullptr)));
  });
  m.def("crown_lines_backward",
        [=](Address weight, Address low_slope, Address low, Address high_slope, Address high, int dtype, int64_t batch,
            int64_t rows, int64_t size, Address grad_moved, Address grad_constant, Address grad_weight,
            Address grad_low_slope, Address grad_low, Address grad_high_slope, Address grad_high, Raw to) {
          CrownLines args = begin(weight, low_slope, low, high_slope, high, dtype, batch, rows, size);
          args.grad_moved = pointer<void>(grad_moved), args.grad_constant = pointer<double>(grad_constant);
          args.grad_weight = pointer<void>(grad_weight), args.grad_low_slope = pointer<void>(grad_low_slope);
          args.grad_low = pointer<void>(grad_low), args.grad_high_slope = pointer<void>(grad_high_slope);
          args.grad_high = pointer<void>(grad_high);
          run_interval(lines_backward, args, where(to, static_cast<Where*>(nullptr)));
        });
}

}  // namespace fastrobust
