// An engine for Python, the same for CPU and CUDA: only the last argument (thread count or stream) differs, and loading
// takes a stream where there is one. A tape comes as lists and dicts; tensors and arrays as addresses.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind.h"
#include "fastrobust/engine.h"

namespace fastrobust {

inline engine::Tape tape_from(const std::vector<std::tuple<int64_t, int64_t, int64_t>>& values,
                              const std::vector<pybind11::dict>& ops, const std::vector<int64_t>& tensors) {
  engine::Tape tape;
  for (const auto& [c, h, w] : values) tape.values.push_back({c, h, w});
  tape.tensors = tensors;
  for (const pybind11::dict& d : ops) {
    const auto get = [&](const char* key, auto otherwise) {
      return d.contains(key) ? d[key].cast<decltype(otherwise)>() : otherwise;
    };
    using Pair = std::pair<int64_t, int64_t>;
    const Pair kernel = get("kernel", Pair{1, 1}), stride = get("stride", Pair{1, 1}), pad = get("padding", Pair{0, 0}),
               dilation = get("dilation", Pair{1, 1});
    const std::vector<int64_t> none;
    tape.ops.push_back({static_cast<engine::Kind>(get("kind", -1)),
                        get("in", -1),
                        get("in2", -1),
                        get("relu", false),
                        get("weight", -1),
                        get("bias", -1),
                        kernel.first,
                        kernel.second,
                        stride.first,
                        stride.second,
                        pad.first,
                        pad.second,
                        dilation.first,
                        dilation.second,
                        get("groups", int64_t(1)),
                        get("alpha", 1.0f),
                        get("beta", 0.0f),
                        static_cast<engine::Function>(get("function", 0)),
                        {get("row_begin", none), get("row_end", none), get("column_begin", none),
                         get("column_end", none), get("divisor", std::vector<float>())},
                        get("order", none)});
  }
  return tape;
}

// The engine's methods take `Where` last; `make` turns a tape into one.
template <class Engine, class Where>
void bind_engine(pybind11::module_& m, std::unique_ptr<Engine> (*make)(const engine::Tape&)) {
  namespace py = pybind11;
  using Raw = std::conditional_t<std::is_pointer_v<Where>, Address, int>;
  const auto loss_of = [](int kind, Address label, Address target, Address reference, double smoothing) {
    LogitLoss a{};
    a.kind = static_cast<Loss>(kind);
    a.label = pointer<int64_t>(label);
    a.target = pointer<int64_t>(target);
    a.reference = pointer<void>(reference);
    a.smoothing = smoothing;
    return a;
  };
  const auto go_to = [](Raw raw) { return where(raw, static_cast<Where*>(nullptr)); };
  const auto list_of = [](const std::vector<Address>& tensors) {
    std::vector<const float*> list;
    for (Address a : tensors) list.push_back(pointer<const float>(a));
    return list;
  };
  // Local: the emulated kernels may be loaded beside those of a device.
  py::class_<Engine> bound(m, "Engine", py::module_local(std::is_pointer_v<Where>));
  if constexpr (std::is_pointer_v<Where>) {
    bound.def("load", [list_of, go_to](Engine& e, const std::vector<Address>& tensors, Raw raw) {
      check(e.load(list_of(tensors), go_to(raw)));
    });
  } else {
    bound.def("load", [list_of](Engine& e, const std::vector<Address>& tensors) { e.load(list_of(tensors)); })
        .def("boxes",
             [](const Engine& e, Address lower, Address upper, int64_t batch, Address lower_out, Address upper_out,
                const std::vector<std::tuple<float, float, Address>>& widening, int threads) {
               std::vector<engine::Widening> each;
               for (const auto& [own, net, slack] : widening) each.push_back({own, net, pointer<const float>(slack)});
               if (!each.empty() && each.size() != e.roundings().size())
                 throw std::invalid_argument("boxes: a widening for each op, or none");
               const engine::Boxes boxes{
                   pointer<const float>(lower), pointer<const float>(upper), batch,
                   pointer<float>(lower_out),   pointer<float>(upper_out),   each.empty() ? nullptr : each.data()};
               Status status;
               {
                 py::gil_scoped_release release;
                 status = e.boxes(boxes, threads);
               }
               check(status);
             })
        .def("votes",
             [](const Engine& e, Address x, Address index, int64_t images, int64_t first, int64_t samples, int kind,
                double scale, uint64_t seed, Address counts, int threads) {
               const engine::Votes votes{pointer<const float>(x),
                                         pointer<const int64_t>(index),
                                         images,
                                         first,
                                         samples,
                                         static_cast<NoiseKind>(kind),
                                         scale,
                                         seed,
                                         pointer<int64_t>(counts)};
               Status status;
               {
                 py::gil_scoped_release release;
                 status = e.votes(votes, threads);
               }
               check(status);
             })
        .def_property_readonly("singles", &Engine::singles)
        .def_property_readonly("roundings", &Engine::roundings);
  }
  bound
      .def(py::init([make](const std::vector<std::tuple<int64_t, int64_t, int64_t>>& values,
                           const std::vector<py::dict>& ops,
                           const std::vector<int64_t>& tensors) { return make(tape_from(values, ops, tensors)); }),
           py::arg("values"), py::arg("ops"), py::arg("tensors"))
      .def("forward",
           [go_to](const Engine& e, Address x, int64_t batch, Address logits, Raw raw) {
             const engine::Pass pass{pointer<const float>(x), batch, pointer<float>(logits), nullptr, nullptr};
             Status status;
             {
               py::gil_scoped_release release;
               status = e.run(pass, go_to(raw));
             }
             check(status);
           })
      .def("gradient",
           [loss_of, go_to](const Engine& e, Address x, int64_t batch, Address logits, int kind, Address label,
                            Address target, Address reference, double smoothing, Address loss, Address prediction,
                            Address correct, Address grad, Raw raw) {
             LogitLoss a = loss_of(kind, label, target, reference, smoothing);
             a.loss = pointer<void>(loss);
             a.prediction = pointer<int64_t>(prediction);
             a.correct = pointer<bool>(correct);
             const engine::Pass pass{pointer<const float>(x), batch, pointer<float>(logits), &a, pointer<float>(grad)};
             Status status;
             {
               py::gil_scoped_release release;
               status = e.run(pass, go_to(raw));
             }
             check(status);
           })
      .def("pgd",
           [loss_of, go_to](const Engine& e, Address x_adv, Address x, int64_t batch, int64_t dim, int64_t steps,
                            double alpha, Address alpha_each, int norm, double eps, Address eps_each, double lo,
                            double hi, Address lo_each, Address hi_each, bool exact, Address bad, int kind,
                            Address label, Address target, Address reference, bool early_stop, int64_t patience,
                            bool best, bool cycles, Address success, Address value, Address taken, Raw raw) {
             const engine::Attack attack{PgdStep{pointer<void>(x_adv), pointer<void>(x_adv), pointer<void>(x), nullptr,
                                                 DType::f32, DType::f32, batch, dim, alpha, pointer<void>(alpha_each),
                                                 Ball{static_cast<Norm>(norm), eps, pointer<void>(eps_each), lo, hi,
                                                      pointer<void>(lo_each), pointer<void>(hi_each), exact},
                                                 pointer<int32_t>(bad)},
                                         loss_of(kind, label, target, reference, 0.0),
                                         steps,
                                         early_stop,
                                         patience,
                                         best,
                                         cycles,
                                         pointer<bool>(success),
                                         pointer<float>(value),
                                         pointer<int64_t>(taken)};
             Status status;
             {
               py::gil_scoped_release release;
               status = e.attack(attack, go_to(raw));
             }
             check(status);
           })
      .def_property_readonly("workspace", &Engine::workspace);
}

}  // namespace fastrobust
