// The parts of attack steps: arrays come as integers.
#pragma once
#include "bind.h"
#include "fastrobust/steps.h"

namespace fastrobust {

template <class Step>
void run_step(Status (*step)(const Step&, int), const Step& args, int threads) {
  Status status;
  {
    pybind11::gil_scoped_release release;
    status = step(args, threads);
  }
  check(status);
}

inline void bind_steps(pybind11::module_& m) {
  using Floats = Address;
  const auto in = [](Floats a) { return pointer<const float>(a); };
  m.def("fab_step", [in](Floats out, Floats x, Floats centre, Floats slope, Floats lead, Floats low, Floats high,
                         int64_t batch, int64_t dim, int norm, double eta, double most_back, int threads) {
    run_step<FabStep>(cpu::steps().fab,
                      {pointer<float>(out), in(x), in(centre), in(slope), in(lead), in(low), in(high), batch, dim,
                       static_cast<Norm>(norm), eta, most_back},
                      threads);
  });
  m.def("apgd_step",
        [in](Floats x, Floats old, Floats centre, Floats slope, Floats best, Floats best_slope, Address back,
             Floats length, Floats radius, Floats share, Address bad, int64_t batch, int64_t dim, int norm, double lo,
             double hi, Floats lo_each, Floats hi_each, bool exact, int threads) {
          const Ball ball{static_cast<Norm>(norm), 0.0, nullptr, lo, hi, in(lo_each), in(hi_each), exact};
          run_step<ApgdStep>(
              cpu::steps().apgd,
              {pointer<float>(x), pointer<float>(old), in(centre), in(slope), in(best), in(best_slope),
               pointer<const bool>(back), in(length), in(radius), in(share), pointer<bool>(bad), batch, dim, ball},
              threads);
        });
  m.def("unit_step", [in](Floats out, Floats x, Floats centre, Floats slope, Floats length, Floats size, Floats low,
                          Floats high, int64_t batch, int64_t dim, int after, int threads) {
    run_step<UnitStep>(cpu::steps().unit,
                       {pointer<float>(out), in(x), in(centre), in(slope), in(length), in(size), in(low), in(high),
                        batch, dim, static_cast<After>(after)},
                       threads);
  });
  m.def("square_step", [in](Floats out, Floats kept, Floats lower, Floats upper, Address plan, Address at,
                            int64_t plans, int64_t words, Address query, Address heights, Address widths, int64_t batch,
                            int64_t channels, int64_t rows, int64_t columns, int threads) {
    const auto whole = [](Address a) { return pointer<const int64_t>(a); };
    run_step<SquareStep>(cpu::steps().square,
                         {pointer<float>(out), in(kept), in(lower), in(upper), whole(plan), whole(at), plans, words,
                          whole(query), whole(heights), whole(widths), batch, channels, rows, columns},
                         threads);
  });
  m.def("draw_back", [in](Floats x, Floats centre, Address rows, Floats low, Floats high, int64_t batch, int64_t dim,
                          double share, int threads) {
    run_step<DrawBack>(cpu::steps().draw_back,
                       {pointer<float>(x), in(centre), pointer<const bool>(rows), in(low), in(high), batch, dim,
                        static_cast<float>(share)},
                       threads);
  });
  m.def("norms", [in](Address out, Floats a, Floats b, int64_t batch, int64_t dim, int measure, int threads) {
    run_step<Norms>(cpu::steps().norms, {pointer<double>(out), in(a), in(b), batch, dim, static_cast<Measure>(measure)},
                    threads);
  });
  m.def(
      "copy_rows",
      [](Address into, Address from, Address rows, int64_t batch, int64_t bytes) {
        const pybind11::gil_scoped_release release;
        const bool* wanted = pointer<const bool>(rows);
        for (int64_t b = 0; b < batch; ++b) {
          if (wanted[b]) memcpy(pointer<char>(into) + b * bytes, pointer<char>(from) + b * bytes, bytes);
        }
      },
      "into[rows] = from[rows], rows being flags.");
}

}  // namespace fastrobust
