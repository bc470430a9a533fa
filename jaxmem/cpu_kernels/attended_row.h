// y = softmax(scale · q keys^T) · values, of one query in each of some heads that share keys and values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.h"

namespace jaxmem {

inline float dot(const float* a, const float* b, int64_t width) {
  Floats sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kWords <= width; i += 2 * kWords) {
    sums[0] += load<Floats>(a + i) * load<Floats>(b + i);
    sums[1] += load<Floats>(a + i + kWords) * load<Floats>(b + i + kWords);
  }
  for (; i < width; i += kWords) sums[0] += load_floats(a + i, width - i) * load_floats(b + i, width - i);
  return sum_of_lanes(sums[0] + sums[1]);
}

// Adds factor · x to y, both of `width` numbers.
inline void add_scaled(const float* x, float factor, int64_t width, float* y) {
  int64_t i = 0;
  for (; i + kWords <= width; i += kWords) store(y + i, load<Floats>(y + i) + load<Floats>(x + i) * factor);
  for (; i < width; ++i) y[i] += x[i] * factor;
}

// y (heads, width) for q (heads, width) over tokens [first, last): key(s) and value(s) point to `width` numbers.
// Some tokens at a time (Milakov and Gimelshein, 2018), so that memory is read once and in order; those that come
// next are asked for before: a page is seldom beside the one before it.
template <typename Key, typename Value>
void attend_row(const float* q, int64_t heads, const Key& key_of, const Value& value_of, int64_t first,
                int64_t last, int64_t width, float scale, float* y) {
  constexpr int64_t kTokens = 32;
  std::vector<float> shares(heads * kTokens), sums(heads, 0.0f);
  std::vector<float> most(heads, -std::numeric_limits<float>::infinity());
  std::fill(y, y + heads * width, 0.0f);
  for (int64_t begin = first; begin < last; begin += kTokens) {
    const int64_t count = std::min(kTokens, last - begin);
    for (int64_t s = 0; s < count; ++s) {
      const float* key = key_of(begin + s);
      if (const int64_t later = begin + s + kTokens; later < last) {
        for (int64_t i = 0; i < width; i += 16) {
          __builtin_prefetch(key_of(later) + i);
          __builtin_prefetch(value_of(later) + i);
        }
      }
      for (int64_t h = 0; h < heads; ++h) shares[h * kTokens + s] = scale * dot(q + h * width, key, width);
    }
    for (int64_t h = 0; h < heads; ++h) {
      float* share = shares.data() + h * kTokens;
      const float before = most[h];
      for (int64_t s = 0; s < count; ++s) most[h] = std::max(most[h], share[s]);
      if (begin > first && most[h] != before) {
        const float factor = std::exp(before - most[h]);
        for (int64_t i = 0; i < width; ++i) y[h * width + i] *= factor;
        sums[h] *= factor;
      }
      for (int64_t s = 0; s < count; ++s) sums[h] += share[s] = std::exp(share[s] - most[h]);
    }
    for (int64_t s = 0; s < count; ++s) {
      const float* value = value_of(begin + s);
      for (int64_t h = 0; h < heads; ++h) add_scaled(value, shares[h * kTokens + s], width, y + h * width);
    }
  }
  for (int64_t i = 0; i < heads * width; ++i) y[i] /= sums[i / width];
}

}  // namespace jaxmem
