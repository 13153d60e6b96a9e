// Fully connected networks: bit for bit the plain loops of mlp_reference.h with the losses and steps of the other
// kernels, whatever the batch, the blocks, the order of execution and the place of the weights.
#include "fastrobust/mlp.h"

#include <stdexcept>
#include <string>

#include "check.h"
#include "mlp_outcome.h"

namespace {

using namespace check;
using namespace fastrobust;

bool equal(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

int64_t first_difference(const Array<float>& a, const float* b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    if (!equal(a[i], b[i])) return i;
  }
  return -1;
}

// How much shared memory the device has, in blocks of four samples' activations, and what an engine does there.
struct Room {
  int64_t blocks;
  bool weights, many;  // weights beside the activations; a thread serves four samples
};

std::vector<Room> rooms(int64_t count) {
  if (count < 32) return {{1000, true, false}, {1, false, false}};
  return {{1000, true, true}, {4, false, true}, {1, false, false}};
}

int64_t activations_of(const Network& net) {
  emulation::options().shared = 1 << 30;
  return cuda::MlpEngine(net.tape).workspace();
}

void attack(const Network& net, int64_t count, const Wish& w) {
  const Batch b(net, count, w);
  const Outcome expected = expected_outcome(net, b, w);
  const int64_t activations = activations_of(net);
  size_t packed = 0;
  for (const auto& t : net.tensors) packed += t.size() * sizeof(float);
  for (const Room& room : rooms(count)) {
    emulation::options().shared = static_cast<int>(room.blocks * activations);
    cuda::MlpEngine engine(net.tape);
    EXPECT(engine.load(net.addresses(), stream()) == Status::ok, "launch");
    emulation::launches().clear();
    in_every_order(
        [&] {
          Outcome got(b);
          engine::Attack a{};
          a.step = b.step(w, got.x_adv.data(), nullptr, got.bad.data());
          a.loss = b.loss(w);
          a.steps = w.steps;
          a.early_stop = w.early_stop;
          a.patience = w.patience;
          a.success = w.judged ? reinterpret_cast<bool*>(got.success.data()) : nullptr;
          a.value = w.judged ? got.value.data() : nullptr;
          a.taken = got.taken.data();
          EXPECT(engine.attack(a, stream()) == Status::ok, "launch");
          expect_launches({stream()});
          const auto least = static_cast<size_t>(room.many ? 4 * activations : activations);
          const size_t weights = emulation::last_shared() - least;
          EXPECT(room.weights ? weights >= packed && weights < 6 * packed + 1000 : weights == 0,
                 "%zu bytes of weights beside %zu", weights, least);
          const int64_t at = first_difference(got.x_adv, expected.x_adv.data());
          EXPECT(at < 0, "batch %ld, norm %d, loss %d: element %ld of sample %ld is %.9g, not %.9g", count, int(w.norm),
                 int(w.loss), at % b.dim, at / b.dim, double(got.x_adv[at]), double(expected.x_adv[at]));
          EXPECT(!w.judged || first_difference(got.value, expected.value.data()) < 0, "batch %ld: losses", count);
          EXPECT(!w.judged || got.success.same(expected.success), "batch %ld: success", count);
          EXPECT(got.taken.same(expected.taken), "batch %ld: steps taken", count);
          EXPECT(got.bad.same(expected.bad), "batch %ld: gradients that were zero or not finite", count);
          EXPECT(got.intact(), "batch %ld: written outside", count);
        },
        room.weights && count < 8);
  }
}

// Logits and gradients: the plain loops' bits, and close to what doubles give.
void pass(const Network& net, int64_t count, Loss kind) {
  Wish w;
  w.loss = kind;
  const Batch b(net, count, w);
  const Gradients expected(net, b, b.loss(w), b.x.data());
  emulation::options().shared = 1 << 30;
  cuda::MlpEngine engine(net.tape);
  EXPECT(engine.load(net.addresses(), stream()) == Status::ok, "launch");
  emulation::launches().clear();
  for (int wanted = 0; wanted < 4; ++wanted) {  // logits alone, then the loss, the gradient, and without logits
    Array<float> logits(count * b.classes), value(count), grad(count * b.dim);
    Array<int64_t> prediction(count);
    Array<unsigned char> correct(count);
    LogitLoss loss = b.loss(w);
    loss.loss = value.data();
    loss.prediction = prediction.data();
    loss.correct = reinterpret_cast<bool*>(correct.data());
    const engine::Pass pass{b.x.data(), count, wanted == 3 ? nullptr : logits.data(), wanted ? &loss : nullptr,
                            wanted > 1 ? grad.data() : nullptr};
    EXPECT(engine.run(pass, stream()) == Status::ok, "launch");
    expect_launches({stream()});
    const Losses& losses = expected.losses;
    EXPECT(wanted == 3 || first_difference(logits, expected.logits.data()) < 0, "batch %ld: logits", count);
    EXPECT(wanted < 1 || first_difference(value, losses.value.data()) < 0, "batch %ld: losses", count);
    EXPECT(wanted < 1 || !std::memcmp(prediction.data(), losses.prediction.data(), count * 8), "batch %ld", count);
    EXPECT(wanted < 1 || !std::memcmp(correct.data(), losses.correct.data(), count), "batch %ld: correct", count);
    EXPECT(wanted < 2 || first_difference(grad, expected.grad.data()) < 0, "batch %ld: gradients", count);
    EXPECT(logits.intact() && value.intact() && grad.intact() && prediction.intact() && correct.intact(),
           "batch %ld: written outside", count);
  }
  const auto exact = net.forward<double>(b.x.data());
  const std::vector<float> first = part(expected.losses.slope, 0, b.classes);
  const auto slope = net.backward<double>(exact, std::vector<double>(first.begin(), first.end()));
  double far = 0, size = 1e-3;
  for (int64_t i = 0; i < b.classes; ++i) {
    far = std::fmax(far, std::fabs(double(expected.logits[i]) - exact.back()[i]));
    size = std::fmax(size, std::fabs(exact.back()[i]));
  }
  EXPECT(far <= 1e-5 * size, "logits are %g from those in double precision", far);
  far = 0, size = 1e-3;
  for (int64_t i = 0; i < b.dim; ++i) {
    far = std::fmax(far, std::fabs(double(expected.grad[i]) - slope[i]));
    size = std::fmax(size, std::fabs(slope[i]));
  }
  EXPECT(far <= 1e-4 * size, "gradients are %g from those in double precision", far);
}

Network plain(int64_t inputs, const std::vector<int64_t>& hidden, int64_t classes) {
  Network net({inputs, 1, 1});
  for (int64_t n : hidden) net.linear(n, true);
  net.linear(classes, false);
  return net;
}

// An image, normalised by channel; ReLUs and layers without a bias wherever a tape may have them.
Network mixed() {
  Network net({3, 2, 5});
  net.affine(true, true).affine(true, false).relu().flatten().linear(7, false, false).affine(false, true, true);
  return net.linear(6, true).relu().linear(5, true);
}

void refuses(const engine::Tape& tape, const char* reason) {
  try {
    cuda::MlpEngine engine(tape);
    EXPECT(false, "taken, though it %s", reason);
  } catch (const std::invalid_argument& e) {
    EXPECT(std::string(e.what()).find(reason) != std::string::npos, "'%s' does not say '%s'", e.what(), reason);
  }
}

void tapes() {
  emulation::options().shared = 227 * 1024;
  refuses(plain(3, {}, 0).tape, "must not be empty");
  refuses(Network({1, 2, 2}).flatten().tape, "without a layer");
  Network turned = Network({1, 2, 2}).flatten();
  std::swap(turned.tape.ops[0].source[0], turned.tape.ops[0].source[1]);
  refuses(turned.linear(3, false).tape, "this rearrange (op 0)");
  Network add = plain(3, {3}, 3);
  add.push(engine::Kind::add, {3, 1, 1}, false).in2 = 1;
  refuses(add.tape, "this add (op 2)");
  Network branch = plain(3, {3}, 3);
  branch.tape.ops[1].in = 0;
  branch.push(engine::Kind::add, {3, 1, 1}, false).in2 = 1;
  refuses(branch.tape, "contract (op 1) reads an earlier result");
  Network image({2, 4, 4});
  image.push(engine::Kind::contract, {3, 4, 4}, false).weight = image.tensor(6, 1, 0);
  refuses(image.flatten().tape, "this contract (op 0)");
  Network groups({4, 1, 1});
  groups.push(engine::Kind::contract, {2, 1, 1}, false).weight = groups.tensor(4, 1, 0);
  groups.tape.ops[0].groups = 2;
  refuses(groups.tape, "this contract (op 0)");
  Network border({4, 1, 1});
  engine::Op& op = border.push(engine::Kind::contract, {2, 1, 1}, false);
  op.pad_h = 1, op.stride_h = 3, op.weight = 0;
  border.tensor(8, 1, 0);
  refuses(border.tape, "this contract (op 0)");
  refuses(plain(3, std::vector<int64_t>(16, 2), 2).tape, "16 layers");
  refuses(plain(9000, {}, 2).tape, "activations");
  refuses(plain(1 << 26, {}, 2).tape, "too large");
  emulation::options().cache = 1000;
  refuses(plain(30, {30}, 2).tape, "L2 cache");
  emulation::options() = {};

  const Network net = plain(3, {}, 2);
  cuda::MlpEngine engine(net.tape);
  bool thrown = false;
  try {
    engine.run({}, stream());
  } catch (const std::logic_error&) {
    thrown = true;
  }
  EXPECT(thrown, "it ran without weights");
  EXPECT(engine.load(net.addresses(), stream()) == Status::ok, "launch");
  emulation::launches().clear();
  EXPECT(engine.run({}, stream()) == Status::ok && engine.attack({}, stream()) == Status::ok, "an empty batch");
  expect_launches({});
}

// Gradients that overflow on their way back, so that what lies between the rows meets infinities.
Network steep() {
  Network net({4, 1, 1});
  for (int64_t n : {5, 5, 5, 3}) net.linear(n, false);
  const float factors[] = {1e-38f, 0, 1e20f, 0, 1e20f, 0, 1e20f, 0};
  for (size_t t = 0; t < net.tensors.size(); ++t) {
    for (float& w : net.tensors[t]) w *= factors[t];
  }
  return net;
}

// Only input 5 has a gradient; with `overflow` one that overflows, and input 6 an ordinary one.
Network lonely(bool overflow) {
  Network net = plain(257, {3}, 2);
  std::vector<float>& first = net.tensors[0];
  for (size_t i = 0; i < first.size(); ++i) {
    const size_t c = i % 257;
    first[i] *= c == 5 ? (overflow ? 1e38f : 1.0f) : c == 6 && overflow ? 1.0f : 0.0f;
  }
  for (float& w : net.tensors[2]) w *= 1000.0f;
  return net;
}

void attacks() {
  const Network small = plain(5, {7}, 3);
  int64_t count = 1;
  for (Norm norm : {Norm::linf, Norm::l2, Norm::l1}) {
    for (Loss loss : {Loss::ce, Loss::kl, Loss::margin, Loss::dlr}) {
      for (int k = 0; k < 2; ++k, count = count % 40 + 3) {
        Wish w;
        w.norm = norm;
        w.loss = loss;
        w.steps = k ? 1 : 4;
        w.targeted = k && (loss == Loss::ce || loss == Loss::margin);
        w.each = count % 2;
        w.boxed = count % 3 == 0;
        w.exact = count % 5 != 0;
        w.early_stop = count % 4 < 2;
        w.patience = count % 3;
        w.judged = count % 4 != 1;
        w.odd = count % 7 == 0;
        attack(small, count, w);
      }
    }
  }
  Wish targeted;
  targeted.loss = Loss::dlr_targeted;
  targeted.targeted = true;
  attack(plain(6, {9}, 5), 3, targeted);
  Wish odd;
  odd.odd = true;
  for (Norm norm : {Norm::linf, Norm::l2}) {
    odd.norm = norm;
    for (int64_t hidden : {1, 2, 6}) {
      odd.steps = hidden % 2 ? 0 : 3;
      attack(plain(9, {hidden, 6}, 4), 33, odd);
    }
  }
  attack(steep(), 9, {});
  attack(lonely(false), 5, {});
  Wish overflow;
  overflow.zero = 5;
  attack(lonely(true), 5, overflow);
  for (int64_t steps : {0, 1, 10}) {
    for (bool judged : {false, true}) {
      Wish w;
      w.steps = steps;
      w.judged = judged;
      attack(plain(33, {50}, 5), judged ? 5 : 33, w);
    }
  }
  Wish stop;
  stop.early_stop = true;
  stop.steps = 10;
  for (int64_t patience : {0, 1}) {
    stop.patience = patience;
    attack(plain(64, {31}, 4), 37, stop);
  }
}

}  // namespace

void check_mlp() {
  if (kSmall) {
    attack(plain(5, {6}, 3), 5, {});
    return pass(mixed(), 3, Loss::ce);
  }
  tapes();
  const std::vector<std::vector<int64_t>> shapes = {
      {1, 2},          {1, 1, 2},           {5, 50, 50, 50, 50, 50, 50, 5},
      {64, 100, 10},   {100, 64, 5, 7},     {257, 3, 10},
      {3, 257, 64, 4}, {32, 33, 31, 129, 2}};
  int64_t count = 2;
  for (const auto& s : shapes) {
    const Network net = plain(s.front(), {s.begin() + 1, s.end() - 1}, s.back());
    pass(net, count, Loss::ce);
    Wish w;
    w.steps = 2;
    w.norm = s.front() < 256 && count % 2 ? Norm::l2 : Norm::linf;
    attack(net, count, w);
    count = count % 40 + 6;
  }
  pass(mixed(), 35, Loss::margin);
  pass(Network({9, 3, 2}).affine(true, true).flatten(true).linear(5, false), 7, Loss::dlr);
  attack(mixed(), 6, {});
  attacks();
  pass(plain(600, {520}, 2), 2, Loss::ce);  // more quarters of rows than threads
  emulation::options() = {};
}
