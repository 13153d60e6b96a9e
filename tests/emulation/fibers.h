// The deterministic engine of cuda_emulation.h: each CUDA thread is a fiber that runs until it must wait at a barrier.
//
// A warp runs as far as it can before the next one has its turn. So a thread that ought to wait for another and does
// not comes too early in one of the three orders, in every run.
#pragma once
#include <memory>
#include <numeric>
#include <random>

#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

struct Thread;
Thread*& self();

struct Fiber;
inline Fiber*& running() {
  static Fiber* f = nullptr;
  return f;
}

class Barrier {
 public:
  void reset(unsigned members) {
    members_ = members;
    arrived_ = 0;
  }
  void wait();
  long generation() const { return generation_; }

 private:
  unsigned members_ = 0, arrived_ = 0;
  long generation_ = 0;
};

// A place to jump to, with its stack.
struct Context {
  void* registers[5];
  const void* stack = nullptr;
  size_t bytes = 0;
};

inline Context& scheduler() {
  static Context c;
  return c;
}

// The compiler's own jump: setjmp's would make a system call or, under AddressSanitizer, clean the whole stack.
[[noreturn]] __attribute__((noinline, no_sanitize("address"))) inline void leave(Context& to, const ucontext_t* fresh) {
  if (fresh) setcontext(fresh);
  __builtin_longjmp(to.registers, 1);
}

// From here to `to`; comes back when somebody jumps to `from`. `fresh`: how `to` begins, if it has not run yet.
__attribute__((noinline, no_sanitize("address"))) inline void jump(Context& from, Context& to,
                                                                   const ucontext_t* fresh = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to.stack, to.bytes);
#endif
  if (!__builtin_setjmp(from.registers)) leave(to, fresh);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

struct Fiber {
  static constexpr size_t kStack = 256 * 1024;

  Context context;
  ucontext_t start;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Thread* thread = nullptr;
  const std::function<void()>* body = nullptr;
  const Barrier* waits_for = nullptr;
  long generation = 0;
  bool started = false, done = true;

  bool ready() const { return !done && (!waits_for || waits_for->generation() != generation); }

  void resume() {
    running() = this;
    self() = thread;
    if (started) {
      jump(scheduler(), context);
    } else {
      started = true;
      context.stack = stack.get();
      context.bytes = kStack;
      getcontext(&start);
      start.uc_stack.ss_sp = stack.get();
      start.uc_stack.ss_size = kStack;
      start.uc_link = nullptr;
      makecontext(&start, enter, 0);
      jump(scheduler(), context, &start);
    }
  }

  static void enter() {
#if defined(__SANITIZE_ADDRESS__)
    Context& back = scheduler();
    __sanitizer_finish_switch_fiber(nullptr, &back.stack, &back.bytes);
#endif
    for (;;) {  // one body after another: fibers are used again
      (*running()->body)();
      running()->done = true;
      jump(running()->context, scheduler());
    }
  }
};

inline void Barrier::wait() {
  Fiber& me = *running();
  me.waits_for = this;
  me.generation = generation_;
  if (++arrived_ == members_) {
    arrived_ = 0;
    ++generation_;
  }
  if (!me.ready()) jump(me.context, scheduler());
  me.waits_for = nullptr;
}

inline std::vector<Fiber>& fibers() {
  static std::vector<Fiber> all(kMostThreads);
  return all;
}

inline void arrange(std::vector<unsigned>& turns, unsigned count, std::mt19937& random) {
  turns.resize(count);
  std::iota(turns.begin(), turns.end(), 0u);
  if (options().order == Order::reverse) std::reverse(turns.begin(), turns.end());
  if (options().order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), random);
}

template <class AnyBlock, class Before>
void run_threads(AnyBlock& block, const std::function<void()>& body, uint64_t first, uint64_t last,
                 const Before& before) {
  const unsigned count = block.threads.x, warps = count / kWarpSize;
  std::vector<typename AnyBlock::Member> threads(count);
  std::vector<unsigned> warp_turns, lane_turns;
  std::mt19937 random(count);
  for (uint64_t b = first; b < last; ++b) {
    before();
    block.index = {static_cast<unsigned>(b)};
    block.all.barrier.reset(count);
    for (unsigned w = 0; w < warps; ++w) block.warps[w].barrier.reset(kWarpSize);
    for (unsigned t = 0; t < count; ++t) {
      threads[t] = {&block, {t}, 0, 0};
      Fiber& f = fibers()[t];
      f.thread = &threads[t];
      f.body = &body;
      f.waits_for = nullptr;
      f.done = false;
    }
    arrange(warp_turns, warps, random);
    arrange(lane_turns, kWarpSize, random);
    unsigned done = 0;
    for (bool progress = true; progress;) {
      progress = false;
      for (unsigned w : warp_turns) {
        for (bool moving = true; moving;) {
          moving = false;
          for (unsigned l : lane_turns) {
            Fiber& f = fibers()[w * kWarpSize + l];
            if (!f.ready()) continue;
            f.resume();
            done += f.done;
            moving = progress = true;
          }
        }
      }
    }
    if (done != count) {
      fibers() = std::vector<Fiber>(kMostThreads);  // the stuck ones are dropped where they stand
      throw std::logic_error("emulation: a thread waits at a barrier that another never reaches");
    }
  }
}

}  // namespace emulation
