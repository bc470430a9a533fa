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
template <typename Key, typename Value>
void attend_row(const float* q, int64_t heads, const Key& key_of, const Value& value_of, int64_t first,
                int64_t last, int64_t width, float scale, float* y) {
  const int64_t count = last - first;
  std::vector<float> shares(heads * count);
  for (int64_t s = 0; s < count; ++s) {
    const float* key = key_of(first + s);
    for (int64_t h = 0; h < heads; ++h) shares[h * count + s] = scale * dot(q + h * width, key, width);
  }
  for (int64_t h = 0; h < heads; ++h) {
    float most = -std::numeric_limits<float>::infinity(), sum = 0;
    float* share = shares.data() + h * count;
    for (int64_t s = 0; s < count; ++s) most = std::max(most, share[s]);
    for (int64_t s = 0; s < count; ++s) sum += share[s] = std::exp(share[s] - most);
    for (int64_t s = 0; s < count; ++s) share[s] /= sum;
  }
  std::fill(y, y + heads * width, 0.0f);
  for (int64_t s = 0; s < count; ++s) {
    const float* value = value_of(first + s);
    for (int64_t h = 0; h < heads; ++h) add_scaled(value, shares[h * count + s], width, y + h * width);
  }
}

}  // namespace jaxmem
