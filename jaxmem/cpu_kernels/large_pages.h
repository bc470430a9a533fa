// Large pages under weights that are read again and again, where Linux has them.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jaxmem {

// Asks for the next page of 2 MiB under an array that has been read often, once for each time that it
// is read: `reads` calls are one time. A CPU looks up an address for every 4 kB otherwise, which took about
// a tenth of a product's time. A page takes the time of some fifteen reads to make, as its bytes move;
// they stay what they are. So arrays that are read a few times have none.
inline void use_large_pages(const void* data, int64_t bytes, int64_t reads) {
#if defined(__linux__)
  constexpr int64_t kPage = 1 << 21, kReads = 64;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE of Linux 6.1
  struct Array {
    std::atomic<uintptr_t> start{0};
    std::atomic<int64_t> calls{0};
  };
  static Array arrays[1 << 10];
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (bytes < kPage || end < first + kPage) return;
  Array& array = arrays[static_cast<uint64_t>(begin / 64) * 0x9E3779B97F4A7C15u >> 54];
  if (array.start.exchange(begin, std::memory_order_relaxed) != begin) {  // or another one had its place
    array.calls.store(0, std::memory_order_relaxed);
  }
  const int64_t call = array.calls.fetch_add(1, std::memory_order_relaxed);
  const int64_t page = call / reads - kReads;
  if (call % reads || page < 0 || first + (page + 1) * kPage > end) return;
  madvise(reinterpret_cast<void*>(first + page * kPage), kPage, kCollapse);
#endif
}

}  // namespace jaxmem
