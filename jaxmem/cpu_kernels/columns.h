// x in fixed point: x ≈ step · (high · 2^14 + middle · 2^7 + low), three digits of at most 8 bits.
//
// The step of a row is the power of two from max |x| / (127 · 2^14) up, so the error of each x is at
// most max |x| · 2^-20.9.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "digit_sums.h"

namespace jaxmem {

// Columns that are summed in integers: of one group, or of two groups that fill a vector together.
struct Chunk {
  int64_t column, group;  // where it begins, and the first group it is in
  int count;              // its columns
  int64_t vector;         // the first of its vectors of x; the last one is filled up with zeros
};

// The vectors of bytes that so many columns fill.
constexpr int vectors_of(int columns) { return (columns + kLanes - 1) / kLanes; }

// Whether a vector may take two groups, one in each half of its lanes: where vectors are long.
constexpr bool kPairs = kLanes == 64;
inline bool are_paired(int64_t group) { return kPairs && 2 * group == kLanes; }

// The chunks of k columns in groups of `group`, each of at most `most` columns.
inline std::vector<Chunk> chunks_of(int64_t k, int64_t group, int most) {
  std::vector<Chunk> chunks;
  int64_t vector = 0;
  const int64_t step = are_paired(group) ? kLanes : group;
  chunks.reserve((k + step - 1) / step * ((std::min(step, k) + most - 1) / most));
  for (int64_t start = 0; start < k; start += step) {
    const int64_t end = std::min(k, start + step);
    for (int64_t column = start; column < end; column += most) {
      const int count = static_cast<int>(std::min<int64_t>(most, end - column));
      chunks.push_back({column, start / group, count, vector});
      vector += vectors_of(count);
    }
  }
  return chunks;
}

constexpr int kNotFinite = 1 << 20;

// The exponent of the step of k numbers: a power of two, so that numbers of few bits are exact.
inline int exponent_of_step(const float* x, int64_t k) {
  Ints largest = {};  // as bits, which have the order of the sizes
  const auto add = [&](Floats numbers) {
    const Ints bits = (Ints)numbers & 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  };
  int64_t i = 0;
  for (; i + kWords <= k; i += kWords) add(load<Floats>(x + i));
  if (i < k) add(load_floats(x + i, k - i));
  int bits = 0, exponent;
  for (int lane = 0; lane < kWords; ++lane) bits = std::max(bits, largest[lane]);
  if (bits >= 0x7F800000) return kNotFinite;
  float size;
  std::memcpy(&size, &bits, sizeof size);
  const float fraction = std::frexp(size, &exponent);
  return exponent - 21 + (fraction > 127 / 128.0f);
}

// The step of k numbers, and the numbers in steps. The step is NaN if a number is not finite.
struct Steps {
  float step = std::numeric_limits<float>::quiet_NaN();

  Steps(const float* x, int64_t k) {
    const int exponent = exponent_of_step(x, k);
    if (exponent == kNotFinite) return;
    step = std::ldexp(1.0f, exponent);
    first_ = std::ldexp(1.0f, -exponent / 2), rest_ = std::ldexp(1.0f, -exponent - -exponent / 2);
  }

  Floats of(Floats numbers) const { return numbers * first_ * rest_; }

 private:
  float first_ = 0, rest_ = 0;  // two factors, since 1 / step may be too large for one number
};

// The integers that numbers of at most 2^22 in size are nearest to.
inline Ints nearest(Floats numbers) {
  const Floats shift = Floats{} + 0x1.8p23f;
  return (Ints)(numbers + shift) - (Ints)shift;
}

// A row of x, as products with codes of kBits bits read it.
template <int kBits>
struct FixedPoint {
  using Sums = DigitSums<kBits>;

  float step = std::numeric_limits<float>::quiet_NaN();  // NaN if an x is not finite, so that the products are NaN
  std::vector<typename Sums::Vector> vectors;
  std::vector<Sums> starts;       // where the sums of each chunk start
  std::vector<Ints> joined_starts;  // the same as integers, if they fit (see in_first_half)
  std::vector<float> group_sums;  // Σ x of each group, as it is in fixed point

  FixedPoint() = default;
  FixedPoint(const float* x, int64_t k, int64_t group_columns, const std::vector<Chunk>& chunks)
      : starts(chunks.size()), joined_starts(fits_int(kBits) ? chunks.size() : 0),
        group_sums(k ? (k + group_columns - 1) / group_columns : 0) {
    const bool paired = are_paired(group_columns);
    const Steps steps(x, k);
    if (!chunks.empty()) vectors.resize(chunks.back().vector + vectors_of(chunks.back().count));
    step = steps.step;
    if (std::isnan(step)) return;
    for (size_t c = 0; c < chunks.size(); ++c) {
      const auto& [column, group, count, vector] = chunks[c];
      Ints sums[2] = {};  // of both groups, if there are two
      Sums middles;
      for (int i = 0; i < count; i += kLanes) {
        auto& digits = vectors[vector + i / kLanes];
        const float* from = x + column + i;
        float few[kLanes];
        if (i + kLanes > count) {
          std::memset(few, 0, sizeof few);
          from = static_cast<const float*>(std::memcpy(few, from, (count - i) * sizeof *from));
        }
        Ints values[kQuarters];
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) values[q] = nearest(steps.of(load<Floats>(from + q * kWords)));
        sums[0] += values[0] + values[1];
        sums[paired] += values[2] + values[3];
        digits.set(values);
        middles.add_products(Bytes{} + middle_code(kBits), typename Sums::Registers(digits));
      }
      starts[c].subtract(middles);
      if constexpr (fits_int(kBits)) joined_starts[c] = in_first_half<kBits>(starts[c].integer_lanes());
      group_sums[group] += sum_of_lanes(__builtin_convertvector(sums[0], Floats));
      if (paired && count > kLanes / 2) {
        group_sums[group + 1] = sum_of_lanes(__builtin_convertvector(sums[1], Floats));
      }
    }
  }
};

}  // namespace jaxmem
