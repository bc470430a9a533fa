// Products of codes of 4 bits, whose values are in a table, on AVX2: in integers.
//
// A value is step · level with a level of 22 bits and a sign: a number of 15 bits and a rest of 7. So is an x
// of 21 bits (see columns.h). 32 columns take 5 shuffles of bytes, where values in f32 take 12. The error of a
// product of two numbers is at most about 2^-20.9 of the power of two from the largest value up, times the
// largest x: from rounding values, 2^-22, and x, 2^-21.9, and from products of rests, which have one value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "columns.h"
#include "scaled_codes.h"
#include "simd.h"

namespace jaxmem {

#if defined(__AVX2__) && !defined(JAXMEM_AVX512)

constexpr int kLevelBits = 21, kLevelVectors = 2;  // vectors of columns whose sums fit 32 bits

// The 16 levels, 2^7 · (2^8 · high + middle) + low; both halves of a vector are equal.
struct LevelParts {
  Bytes high, middle, low;
  int mean_low;  // of the least and the largest one
  float step;

  explicit LevelParts(const ScaledRows& weight) {
    float size = 0;
    for (int i = 0; i < 16; ++i) size = std::max(size, std::fabs(weight.levels[i]));
    int exponent = 0, least = 127, most = 0;
    if (std::frexp(size, &exponent) == 0.5f) --exponent;  // a power of two is 2^21 steps
    step = std::ldexp(1.0f, exponent - kLevelBits);
    for (int i = 0; i < kLanes; ++i) {
      const int level = std::lrint(std::ldexp(weight.levels[i % 16], kLevelBits - exponent)), rest = level & 127;
      high[i] = level >> 15, middle[i] = level >> 7, low[i] = rest;
      least = std::min(least, rest), most = std::max(most, rest);
    }
    mean_low = (least + most) / 2;
  }
};

// x of kLanes columns, 2^7 · high + low. Each half of a vector of bytes becomes a half of two vectors of 16 bits.
struct alignas(kLanes) LevelDigits {
  int16_t high[2][kLanes / 2], low[2][kLanes / 2];
  int8_t top[kLanes];  // high is about 2^7 · top

  // Returns what sums with the levels are to start at, in units of 2^14: what lowest products leave out.
  Ints set(const Ints* values, const LevelParts& levels) {
    Ints highs[kQuarters], lows[kQuarters], tops[kQuarters], starts = {};
#pragma GCC unroll 4
    for (int q = 0; q < kQuarters; ++q) {
      highs[q] = (values[q] + 64) >> 7;
      lows[q] = values[q] - (highs[q] << 7);
      tops[q] = (highs[q] + 64) >> 7;
      starts += (values[q] - (tops[q] << 14)) * levels.mean_low >> 14;
    }
    const auto halves = [](const Ints& first, const Ints& last) {
      return _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)first, (__m256i)last), 0xD8);
    };
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      store(high[q], halves(highs[q], highs[q + 2]));
      store(low[q], halves(lows[q], lows[q + 2]));
    }
    store_narrow(tops, top);
    return starts;
  }
};

// A row of x, as products with levels read it.
struct LevelInput {
  std::vector<Chunk> chunks;
  std::vector<LevelDigits> digits;
  std::vector<Ints> starts;  // of each chunk
  float step;                // NaN if an x is not finite, so that the products are NaN

  LevelInput(const float* x, const ScaledRows& weight)
      : chunks(chunks_of(weight.k, weight.group, kLevelVectors * kLanes)), starts(chunks.size()) {
    const LevelParts levels(weight);
    const Steps steps(x, weight.k);
    if (!chunks.empty()) digits.resize(chunks.back().vector + vectors_of(chunks.back().count));
    step = steps.step;
    if (std::isnan(step)) return;
    for (size_t c = 0; c < chunks.size(); ++c) {
      const auto& [column, group, count, vector] = chunks[c];
      for (int at = 0; at < count; at += kLanes) {
        Ints values[kQuarters] = {};
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) {
          const int from = at + q * kWords;
          if (from < count) values[q] = nearest(steps.of(load_floats(x + column + from, count - from)));
        }
        starts[c] += digits[vector + at / kLanes].set(values, levels);
      }
    }
  }
};

// Adds the products of kLanes codes to sums in units of 2^14, and of 2^7.
JAXMEM_INLINE void add_levels(const LevelParts& levels, __m256i codes, const LevelDigits& x, Ints* high, Ints* low) {
  const auto values = [&](const Bytes& part) { return _mm256_shuffle_epi8((__m256i)part, codes); };
  const __m256i tops = values(levels.high), middles = values(levels.middle);
  const __m256i front = _mm256_unpacklo_epi8(middles, tops), back = _mm256_unpackhi_epi8(middles, tops);
  const auto products = [](__m256i a, const int16_t* from) { return (Ints)_mm256_madd_epi16(a, load<__m256i>(from)); };
  const __m256i rests = _mm256_maddubs_epi16(values(levels.low), load<__m256i>(x.top));
  *high += products(front, x.high[0]) + products(back, x.high[1]) + (Ints)_mm256_madd_epi16(rests, _mm256_set1_epi16(1));
  *low += products(front, x.low[0]) + products(back, x.low[1]);
  asm("" : "+x"(*high), "+x"(*low));  // GCC would add up many products at a time, more than registers hold
}

// Sets the two `totals` to the products of the two rows of `codes` with x. Their scales in group g are the
// first two of scales[8 · g]. A chunk is kVectors whole vectors, or any number of columns if that is 0.
template <int kVectors>
JAXMEM_INLINE void two_level_rows(const LevelParts& levels, const uint8_t* codes, const float* scales,
                                  const LevelInput& x, Floats* totals) {
  const int64_t count = x.chunks.size();
  const LevelDigits* digits = x.digits.data();
  const Chunk* chunks = x.chunks.data();
  Floats first_total = {}, last_total = {};
  for (int64_t c = 0; c < count; ++c) {
    Ints first = x.starts[c], last = first, first_low = {}, last_low = {};
    const auto add = [&](Bytes bytes) __attribute__((always_inline)) {
      add_levels(levels, (__m256i)(bytes & 15), *digits, &first, &first_low);
      add_levels(levels, (__m256i)(bytes >> 4), *digits, &last, &last_low);
      ++digits, codes += kLanes;
    };
    const auto add_whole = [&]() __attribute__((always_inline)) { fetch_ahead(codes, 4), add(load<Bytes>(codes)); };
    if constexpr (kVectors > 0) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) add_whole();
    } else {
      const uint8_t* end = codes + chunks[c].count;
      while (codes + kLanes <= end) add_whole();
      if (codes < end) add(load_bytes<false>(codes, end - codes));
      codes = end;
    }
    const auto joined = [](Ints sums, Ints low) { return __builtin_convertvector(sums + (low >> 7), Floats); };
    const float* scale = scales + kByteRows * chunks[c].group;
    first_total += joined(first, first_low) * scale[0];
    last_total += joined(last, last_low) * scale[1];
  }
  totals[0] = first_total, totals[1] = last_total;
}

// y (n) of rows [first, last) of a block of the weight; `scales` are those of the block.
template <int kVectors>
void level_block_product(const ScaledRows& weight, const EightFloats* scales, const LevelInput& x, int64_t first,
                         int64_t last, float* y) {
  const LevelParts levels(weight);
  const int64_t groups = weight.groups();
  for (int64_t row = first; row < last; row += kByteRows) {
    const float* of_eight = reinterpret_cast<const float*>(scales + (row - first) / kByteRows * groups);
    Floats totals[kByteRows] = {};
    for (int r = 0; r < kByteRows && row + r < last; r += 2) {
      two_level_rows<kVectors>(levels, weight.codes + (row + r) / 2 * weight.k, of_eight + r, x, totals + r);
    }
    const EightFloats sums = sums_of_lanes(totals) * (levels.step * 0x1p14f * weight.unit) * x.step;
    std::memcpy(y + row, &sums, std::min<int64_t>(kByteRows, last - row) * sizeof *y);
  }
}

inline void level_rows_product(const ScaledRows& weight, const EightFloats* scales, const LevelInput& x, int64_t first,
                               int64_t last, float* y) {
  const auto divides = [&](int64_t columns) { return weight.group % columns == 0 && weight.k % columns == 0; };
  if (divides(2 * kLanes)) level_block_product<2>(weight, scales, x, first, last, y);
  else if (weight.group == kLanes && divides(kLanes)) level_block_product<1>(weight, scales, x, first, last, y);
  else level_block_product<0>(weight, scales, x, first, last, y);
}

#endif

}  // namespace jaxmem
