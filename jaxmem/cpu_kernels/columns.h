// x in fixed point: x ≈ step · (high · 2^14 + middle · 2^7 + low), three digits of at most 8 bits.
//
// The step of a row is the power of two from max |x| / (127 · 2^14) up, so the error of each x is at
// most max |x| · 2^-20.9.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd.h"

namespace jaxmem {

// Columns that are summed in integers; none of them crosses the border of a group.
struct Chunk {
  int64_t column, group;  // where it begins, and the group it is in
  int count;              // its columns
  int64_t vector;         // the first of its vectors of x; the last one is filled up with zeros
};

// The chunks of k columns in groups of `group`, each of at most `most` columns.
inline std::vector<Chunk> chunks_of(int64_t k, int64_t group, int most) {
  std::vector<Chunk> chunks;
  int64_t vector = 0;
  for (int64_t start = 0; start < k; start += group) {
    const int64_t end = std::min(k, start + group);
    for (int64_t column = start; column < end; column += most) {
      const int count = static_cast<int>(std::min<int64_t>(most, end - column));
      chunks.push_back({column, start / group, count, vector});
      vector += (count + kLanes - 1) / kLanes;
    }
  }
  return chunks;
}

inline int16_t high_of(int value) { return static_cast<int16_t>((value + 64) >> 7); }
inline int16_t low_of(int value) { return static_cast<int16_t>(value - high_of(value) * 128); }

inline void set_column(Digits* x, int i, int value) {
  const int above = high_of(value);
  x->high[i] = static_cast<int8_t>(high_of(above));
  x->middle[i] = static_cast<int8_t>(low_of(above));
  x->low[i] = static_cast<int8_t>(low_of(value));
}

inline void set_column(Halves* x, int i, int value) {
  const int place = i / 2 + i % 2 * (kLanes / 2);
  x->high[place] = high_of(value);
  x->low[place] = low_of(value);
}

// A row of x in vectors of `Digits` or `Halves`.
template <typename Vector>
struct FixedPoint {
  float step;                     // NaN if an x is not finite, so that the products are NaN
  std::vector<Vector> vectors;
  std::vector<float> group_sums;  // Σ x of each group, as it is in fixed point

  FixedPoint(const float* x, int64_t k, int64_t groups, const std::vector<Chunk>& chunks)
      : group_sums(groups) {
    constexpr int kLargest = 127 << 14;
    float largest = 0;
    bool finite = true;
    for (int64_t i = 0; i < k; ++i) {
      finite = finite && std::isfinite(x[i]);
      largest = std::max(largest, std::fabs(x[i]));
    }
    int exponent;  // a power of two as the step: numbers of few bits, as of bfloat16, are exact
    std::frexp(largest / kLargest, &exponent);
    step = largest > 0 ? std::ldexp(1.0f, exponent) : 0.0f;
    if (!finite) step = std::numeric_limits<float>::quiet_NaN();
    const double per_step = step > 0 ? 1 / static_cast<double>(step) : 0;
    vectors.resize(chunks.empty() ? 0 : chunks.back().vector + (chunks.back().count + kLanes - 1) / kLanes);
    if (per_step == 0) return;
    for (const Chunk& chunk : chunks) {
      int64_t sum = 0;
      for (int i = 0; i < chunk.count; ++i) {
        const int nearest = static_cast<int>(std::lrint(x[chunk.column + i] * per_step));
        const int value = std::clamp(nearest, -kLargest, kLargest);
        set_column(&vectors[chunk.vector + i / kLanes], i % kLanes, value);
        sum += value;
      }
      group_sums[chunk.group] += static_cast<float>(sum);
    }
  }
};

}  // namespace jaxmem
