// The engine of cuda_emulation.h for ThreadSanitizer: each CUDA thread is a system thread, barriers are pthread's.
#pragma once
#include <pthread.h>

#include <thread>

namespace emulation {

struct Thread;
Thread*& self();

class Barrier {
 public:
  void reset(unsigned members) {
    if (members_) pthread_barrier_destroy(&barrier_);
    members_ = members;
    pthread_barrier_init(&barrier_, nullptr, members);
  }
  void wait() { pthread_barrier_wait(&barrier_); }
  ~Barrier() {
    if (members_) pthread_barrier_destroy(&barrier_);
  }

 private:
  unsigned members_ = 0;
  pthread_barrier_t barrier_;
};

template <class AnyBlock, class Before>
void run_threads(AnyBlock& block, const std::function<void()>& body, uint64_t first, uint64_t last,
                 const Before& before) {
  const unsigned count = block.threads.x;
  block.all.barrier.reset(count);
  for (unsigned w = 0; w < count / kWarpSize; ++w) block.warps[w].barrier.reset(kWarpSize);
  Barrier between;  // blocks run one after another
  between.reset(count);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < count; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t b = first; b < last; ++b) {
        if (t == 0) {
          before();
          block.index = {static_cast<unsigned>(b)};
        }
        between.wait();
        typename AnyBlock::Member me{&block, {t}, 0, 0};
        self() = &me;
        body();
        between.wait();
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace emulation
