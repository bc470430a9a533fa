// A loop whose iterations the threads of XLA's pool share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "scales.h"

namespace jaxmem {

constexpr int64_t kPartWeights = 1 << 15;  // weights that are worth a thread
constexpr int64_t kPartRows = 4 * kByteRows;  // that divide the rows of a part

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

// Calls run(batch, first, last) for each of some batches of x and parts of n rows of k weights each, which
// threads share.
template <typename Pool, typename Run>
void for_rows(Pool& pool, int64_t batches, int64_t n, int64_t k, const Run& run) {
  const int64_t threads = pool.num_threads();
  const int64_t most_parts = std::max<int64_t>(1, n * k / kPartWeights);
  const int64_t parts = threads > 1 ? std::min((4 * threads + batches - 1) / batches, most_parts) : 1;
  const int64_t steps = (n + parts * kPartRows - 1) / (parts * kPartRows), rows = std::max<int64_t>(1, steps) * kPartRows;
  const int64_t count = (n + rows - 1) / rows;
  parallel_for(pool, threads, batches * count, [&](int64_t i) {
    const int64_t first = i / batches * rows;
    run(i % batches, first, std::min(n, first + rows));
  });
}

}  // namespace jaxmem
