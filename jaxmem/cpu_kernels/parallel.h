// A loop whose iterations the threads of XLA's pool share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

namespace jaxmem {

// Calls run(i) for each i in [0, count). The calling thread takes iterations, too, and waits only for
// those that another thread has begun: so a pool whose threads are all busy delays nothing.
template <typename Pool, typename Run>
void parallel_for(Pool& pool, int64_t threads, int64_t count, const Run& run) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  const auto state = std::make_shared<State>();
  const auto work = [state, count, &run] {  // `run` may be gone, but not before the last iteration
    for (int64_t i; (i = state->next.fetch_add(1)) < count; state->done.fetch_add(1)) run(i);
  };
  for (int64_t t = 1; t < std::min(threads, count); ++t) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  while (state->done.load() < count) std::this_thread::yield();
}

}  // namespace jaxmem
