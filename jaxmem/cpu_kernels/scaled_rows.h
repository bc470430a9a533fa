// y = Σ_g scale_g · Σ_(k in g) value(code_k) · x_k for rows of codes of 4 bits, whose values are in a
// table, and of floats of 8 bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "columns.h"
#include "decoded_rows.h"
#include "level_rows.h"
#include "scaled_codes.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

// Rows of x (m, k) in the order in which a decoder gives the values of a weight's columns. Each group
// is filled up with zeros to whole vectors of bytes. Each row is multiplied by a power of two, so that its
// largest size is at least about 2^kInputExponent, if that is not 0.
template <typename Decoder>
struct OrderedInputs {
  int64_t group, length;  // floats of a group, and of a row
  std::vector<float> rows, units;  // the products of row i are to be multiplied by units[2 · i] and [2 · i + 1]

  OrderedInputs(const float* x, int64_t m, const ScaledRows& weight)
      : group((std::min(weight.group, weight.k) + kLanes - 1) / kLanes * kLanes),
        length(group * weight.groups()), rows(m * length) {
    for (int64_t i = 0; i < m; ++i) {
      const int step = Decoder::kInputExponent ? exponent_of_step(x + i * weight.k, weight.k) : kNotFinite;
      const int exponent = step == kNotFinite ? 0 : std::max(0, Decoder::kInputExponent - step - 21);
      const float first = std::ldexp(1.0f, exponent / 2), rest = std::ldexp(1.0f, exponent - exponent / 2);
      units.insert(units.end(), {1 / first, Decoder::kUnit / rest * weight.unit});
      for (int64_t g = 0, start = 0; start < weight.k; ++g, start += weight.group) {
        float* row = rows.data() + i * length + g * group;
        for (int64_t c = 0; c < std::min(weight.group, weight.k - start); ++c) {
          row[c / kLanes * kLanes + Decoder::place(c % kLanes)] = x[i * weight.k + start + c] * first * rest;
        }
      }
    }
  }
};

// Sets `sums` (kBytes, kRowsOfByte, kRows) to the products of one group of kBytes rows of bytes, which are
// `between` bytes apart, with kRows rows, which are `length` floats apart.
template <int kRows, int kBytes, typename Decoder>
JAXMEM_INLINE void group_product(const Decoder& decoder, const uint8_t* codes, int64_t between, int64_t count,
                          const float* x, int64_t length, Floats (*sums)[kRows]) {
  constexpr int kCodes = Decoder::kRowsOfByte, kSums = kBytes * kCodes;
  Floats parts[kSums][kRows] = {};
  const auto add = [&](const uint8_t* bytes, int first, const float* x) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int r = 0; r < kCodes; ++r) {
      Floats values[kStepVectors];
      decoder.decode(bytes, r, values);
#pragma GCC unroll 4
      for (int v = 0; v < kStepVectors; ++v) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          parts[first + r][i] += values[v] * load<Floats>(x + i * length + kWords * v);
        }
      }
    }
  };
  int64_t column = 0;
  for (; column + kLanes <= count; column += kLanes) {
#pragma GCC unroll 4
    for (int f = 0; f < kBytes; ++f) {
      const uint8_t* from = codes + f * between + column;
      fetch_ahead(from, 8 / kCodes);
      add(from, f * kCodes, x + column);
    }
  }
  if (column < count) {
#pragma GCC unroll 4
    for (int f = 0; f < kBytes; ++f) {
      uint8_t few[kLanes] = {};
      std::memcpy(few, codes + f * between + column, count - column);
      add(few, f * kCodes, x + column);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kSums; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) sums[r][i] = parts[r][i];
  }
}

// y (kRows, n) of kBytes times the rows of a byte, from `row` on, for the rows of x from `from` on. `scales` are
// those of the block that begins at `first`, (vectors of 8 rows, groups).
template <int kRows, int kBytes, typename Decoder>
void byte_rows_product(const Decoder& decoder, const ScaledRows& weight, const EightFloats* scales,
                 const OrderedInputs<Decoder>& x, int64_t from, int64_t first, int64_t row, float* y) {
  constexpr int kCodes = Decoder::kRowsOfByte;
  const int64_t groups = weight.groups();
  const uint8_t* codes = weight.codes + row / kCodes * weight.k;
  const float* inputs = x.rows.data() + from * x.length;
  Floats totals[kBytes * kCodes][kRows] = {}, sums[kBytes * kCodes][kRows];
  for (int64_t g = 0, start = 0; g < groups; ++g, start += weight.group) {
    const int64_t count = std::min(weight.group, weight.k - start);
    group_product<kRows, kBytes>(decoder, codes + start, weight.k, count, inputs + g * x.group, x.length, sums);
#pragma GCC unroll 4
    for (int f = 0; f < kBytes; ++f) {
      const int64_t at = row + f * kCodes - first;
      const EightFloats& eight = scales[at / kByteRows * groups + g];
#pragma GCC unroll 2
      for (int r = 0; r < kCodes; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) totals[f * kCodes + r][i] += sums[f * kCodes + r][i] * eight[at % kByteRows + r];
      }
    }
  }
  for (int f = 0; f < kBytes; ++f) {
    for (int r = 0; r < std::min<int64_t>(kCodes, weight.n - row - f * kCodes); ++r) {
      for (int i = 0; i < kRows; ++i) {
        const float* units = x.units.data() + 2 * (from + i);
        y[(from + i) * weight.n + row + f * kCodes + r] = sum_of_lanes(totals[f * kCodes + r][i]) * units[0] * units[1];
      }
    }
  }
}

// y (kRows, n) of rows [first, last) of the weight, at most kBlockRows, for the rows of x from `from`
// on; 8 divides `first`. `scales` are those of the block, (vectors of 8 rows, groups).
template <int kRows, typename Decoder>
void block_product(const ScaledRows& weight, const EightFloats* scales,
                   const OrderedInputs<Decoder>& x, int64_t from, int64_t first, int64_t last, float* y) {
  constexpr int kCodes = Decoder::kRowsOfByte, kBytes = kRows == 1 ? 4 / kCodes : 1;  // so many sums do not wait for each other
  const Decoder decoder(weight);
  int64_t row = first;
  for (; kBytes > 1 && row + kBytes * kCodes <= last; row += kBytes * kCodes) {
    byte_rows_product<kRows, kBytes>(decoder, weight, scales, x, from, first, row, y);
  }
  for (; row < last; row += kCodes) byte_rows_product<kRows, 1>(decoder, weight, scales, x, from, first, row, y);
}

// Calls run(scales, row, end) for blocks of rows [row, end) of rows [first, last) of the weight, with their
// scales, (vectors of 8 rows, groups); 8 divides `first`.
template <typename Run>
void for_blocks(const ScaledRows& weight, int64_t first, int64_t last, const Run& run) {
  const int64_t groups = weight.groups();
  std::vector<EightFloats> scales(groups * kBlockVectors);
  for (int64_t row = first; row < last; row += kBlockRows) {
    const int64_t end = std::min(last, row + kBlockRows);
    for (int64_t g = 0; g < groups; ++g) {
      weight.fetch_block(weight.scale, g, row + kBlockRows);
      for (int64_t v = 0; row + v * kByteRows < end; ++v) {
        scales[v * groups + g] = weight.scales_of(g, row + v * kByteRows);
      }
    }
    run(scales.data(), row, end);
  }
}

// y (m, n) of rows [first, last) of the weight; 8 divides `first`.
template <typename Decoder>
void scaled_product(const ScaledRows& weight, const OrderedInputs<Decoder>& x, int64_t m,
                    int64_t first, int64_t last, float* y) {
  constexpr int kMostRows = Decoder::kMostRows;
  for_blocks(weight, first, last, [&](const EightFloats* scales, int64_t row, int64_t end) {
    int64_t i = 0;
    for (; i + kMostRows <= m; i += kMostRows) block_product<kMostRows>(weight, scales, x, i, row, end, y);
    for (; kMostRows > 2 && i + 2 <= m; i += 2) block_product<2>(weight, scales, x, i, row, end, y);
    for (; i < m; ++i) block_product<1>(weight, scales, x, i, row, end, y);
  });
}

#if defined(__AVX2__) && !defined(JAXMEM_AVX512)
// The same of one row of x.
inline void scaled_product(const ScaledRows& weight, const LevelInput& x, int64_t, int64_t first, int64_t last, float* y) {
  for_blocks(weight, first, last, [&](const EightFloats* scales, int64_t row, int64_t end) {
    level_rows_product(weight, scales, x, row, end, y);
  });
}

#endif

// The same where x meets decoded weights.
template <typename Decoder>
void tiled_product(const ScaledRows& weight, const InputTiles& x, int64_t first, int64_t last, float* y) {
  DecodedScaled<Decoder> decoded(weight);
  decoded_product(decoded, x, first, last, [&](int64_t i, int64_t row, EightFloats values) {
    std::memcpy(y + i * weight.n + row, &values, std::min<int64_t>(kByteRows, last - row) * sizeof *y);
  });
}

inline void scaled_product(const ScaledRows& weight, const InputTiles& x, int64_t, int64_t first, int64_t last, float* y) {
  if (weight.bits == 4) return tiled_product<Levels>(weight, x, first, last, y);
  if (weight.exponent_bits == 4) return tiled_product<Float8<4>>(weight, x, first, last, y);
  return tiled_product<Float8<5>>(weight, x, first, last, y);
}

// Calls run(x) with the rows of x as the decoder of the weight wants them.
template <typename Run>
void with_inputs(const ScaledRows& weight, const float* x, int64_t m, const Run& run) {
  #if defined(__AVX2__) && !defined(JAXMEM_AVX512)
  // Of more rows, floats that are decoded once take less time.
  if (weight.bits == 4 && m == 1) return run(LevelInput(x, weight));
#endif
  if (weight.bits == 4) return run(OrderedInputs<Levels>(x, m, weight));
  if (weight.exponent_bits == 4) return run(OrderedInputs<Float8<4>>(x, m, weight));
  return run(OrderedInputs<Float8<5>>(x, m, weight));
}

}  // namespace jaxmem
