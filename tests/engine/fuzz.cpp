// Random tapes through the whole engine:  fuzz [first seed [seeds]], on the instruction set FASTROBUST_ISA.
//
// Each seed writes a tape and demands that its logits and gradients are those of reference.h, that results do not
// depend on the order of the batch, its division or the threads, that an attack makes the steps which single passes
// and pgd_step make, inside ball and box, that boxes hold what lies in them, that votes add up, and that a spoilt tape
// is refused or runs. The sanitizers that this is built with watch all of it.
#include <csignal>
#include <stdexcept>
#include <thread>

#include "fastrobust/dispatch.h"
#include "task.h"

namespace fuzz {
namespace {

uint64_t seed_now = 0;
const Tape* tape_now = nullptr;

std::vector<const float*> addresses(const Tensors& tensors) {
  std::vector<const float*> list;
  for (const Floats& t : tensors) list.push_back(t.data());
  return list;
}

// New weights arrive while other threads run: each pass has the old ones or the new, not some of both.
void check_threads(Engine* engine, const Net& net, const Task& task) {
  Tensors other = net.tensors;
  for (Floats& t : other) {
    for (float& v : t) v *= 0.5f;
  }
  const Floats before = run(*engine, task, 1).logits;
  engine->load(addresses(other));
  const Floats after = run(*engine, task, 1).logits;
  std::vector<std::thread> team;
  for (int i = 0; i < 2; ++i) {
    team.emplace_back([&] {
      for (int round = 0; round < 3; ++round) {
        const Floats z = run(*engine, task, 1).logits;
        const auto n = static_cast<int64_t>(z.size());
        MUST(same(z.data(), before.data(), n) || same(z.data(), after.data(), n), "half-loaded weights");
      }
    });
  }
  for (int round = 0; round < 2; ++round) {
    engine->load(addresses(net.tensors));
    std::this_thread::yield();
    engine->load(addresses(other));
  }
  for (std::thread& t : team) t.join();
  engine->load(addresses(net.tensors));
}

void check_spoilt(const Tape& sound, Draws& d) {
  for (int round = 0; round < 8; ++round) {
    Tape tape = sound;
    spoil(&tape, d);
    try {
      const std::unique_ptr<Engine> engine = engine::make(tape);
      ++tally.ran;
      int64_t total = 0;
      for (int64_t n : tape.tensors) total += std::min<int64_t>(n, 1 << 24);
      if (total > 1 << 22 || engine->workspace() > 1 << 28) continue;  // sound, but too large to try here
      Tensors tensors;
      for (int64_t n : tape.tensors) tensors.emplace_back(static_cast<size_t>(n), 0.1f);
      engine->load(addresses(tensors));
      Task task{17, tape.values[0].size(), tape.values.back().c, {}, {}, Whole(17), {}, {}};
      task.x.assign(static_cast<size_t>(17 * task.dim), 0.5f);
      run(*engine, task, 1);
      Floats lower(static_cast<size_t>(17 * task.classes)), upper = lower;
      engine->boxes({task.x.data(), task.x.data(), 17, lower.data(), upper.data()}, 1);
    } catch (const std::invalid_argument&) {
      ++tally.refused;
    }
  }
}

void check_seed(uint64_t seed) {
  seed_now = seed;
  Draws d(seed);
  const Net net = Author(d).write();
  tape_now = &net.tape;
  const std::unique_ptr<Engine> engine = engine::make(net.tape);
  engine->load(addresses(net.tensors));
  const Task task = draw_task(net.tape, d);
  check_passes(net, *engine, task, d);
  check_attack(*engine, task, d);
  check_boxes(net, *engine, task, d);
  check_votes(*engine, task, d);
  if (seed % 4 == 0) check_threads(engine.get(), net, task);
  check_spoilt(net.tape, d);
}

}  // namespace

void tell_seed() {
  std::fprintf(stderr, "fuzz: seed %llu on %s\n", (unsigned long long)seed_now, cpu::current_isa());
  for (size_t i = 0; i < tape_now->ops.size(); ++i) {
    const Op& op = tape_now->ops[i];
    const Shape &from = tape_now->values[op.in], &to = tape_now->values[i + 1];
    std::fprintf(stderr, "  %zu: kind %d, values %d (%dx%dx%d) and %d to %dx%dx%d%s", i, int(op.kind), op.in,
                 int(from.c), int(from.h), int(from.w), op.in2, int(to.c), int(to.h), int(to.w),
                 op.relu ? ", relu" : "");
    if (op.kind == Kind::activation) std::fprintf(stderr, ", function %d(%g, %g)", int(op.function), op.alpha, op.beta);
    if (op.kind == Kind::contract)
      std::fprintf(stderr, ", kernel %dx%d, stride %dx%d, padding %dx%d, dilation %dx%d, groups %d", int(op.kh),
                   int(op.kw), int(op.stride_h), int(op.stride_w), int(op.pad_h), int(op.pad_w), int(op.dilation_h),
                   int(op.dilation_w), int(op.groups));
    std::fprintf(stderr, "\n");
  }
}

}  // namespace fuzz

int main(int count, char** arguments) {
  using namespace fuzz;
  const uint64_t first = count > 1 ? std::strtoull(arguments[1], nullptr, 0) : 0;
  const uint64_t seeds = count > 2 ? std::strtoull(arguments[2], nullptr, 0) : 100;
  std::signal(SIGABRT, [](int) { tell_seed(); });  // so end the sanitizers: see the Makefile
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    try {
      check_seed(seed);
    } catch (const std::exception& e) {
      MUST(false, "%s", e.what());
    }
  }
  std::printf(
      "%d seeds on %s: %d gradients compared, %d at a kink, errors %.6f and %.6f of what is allowed, "
      "%d spoilt tapes refused, %d run\n",
      int(seeds), cpu::current_isa(), int(tally.compared), int(tally.skipped), tally.logits, tally.gradients,
      int(tally.refused), int(tally.ran));
  return 0;
}
