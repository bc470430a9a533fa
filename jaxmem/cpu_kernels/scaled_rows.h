// y = Σ_g scale_g · Σ_(k in g) value(code_k) · x_k for rows of codes of 4 bits, whose values are in a
// table, and of floats of 8 bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "packing.h"
#include "simd.h"

namespace jaxmem {

constexpr int kStepVectors = kLanes / 8;  // vectors of f32 that kLanes codes become

// The rows of a weight, as codecs/scaled.py stores them.
struct ScaledRows {
  int bits;              // 4 or 8
  int exponent_bits;     // of floats of 8 bits: 4 or 5
  const float* levels;   // the values of the 16 codes of 4 bits
  int64_t n, k, group;   // rows, columns, and columns that share a scale
  const uint8_t* codes;  // (n · bits/8, k); floats of 8 bits have their highest bit inverted
  const void* scale;     // (groups, n), f32 or the bits of float16, times `unit`
  bool half_scale;
  float unit;
  int64_t groups() const { return k ? (k + group - 1) / group : 0; }

  float scale_of(int64_t g, int64_t row) const {
    const int64_t place = g * n + row;
    if (!half_scale) return static_cast<const float*>(scale)[place] * unit;
    return from_half(static_cast<const uint16_t*>(scale)[place]) * unit;
  }
};

// The values of 16 codes of 4 bits, as four tables of one byte of an f32 each.
struct Levels {
  static constexpr int kRowsOfByte = 2;
  static constexpr int kMostRows = 2;  // of x: sums for more would not stay in registers
  static constexpr float kUnit = 1;
  Bytes tables[4];  // both halves of a vector are equal

  explicit Levels(const ScaledRows& weight) {
    for (int i = 0; i < kLanes; ++i) {
      uint32_t bits;
      std::memcpy(&bits, weight.levels + i % 16, sizeof bits);
      for (int byte = 0; byte < 4; ++byte) tables[byte][i] = bits >> 8 * byte & 255;
    }
  }

  // Where the value of a column is among those that `decode` writes: each half of a vector of bytes
  // becomes its own half of four vectors of f32.
  static constexpr int place(int column) { return column % 16 / 4 * 8 + column / 16 * 4 + column % 4; }

  // The values in the low 4 bits of kLanes bytes (row 0), or in their high 4 bits (row 1).
  void decode(const uint8_t* from, int row, Floats* values) const {
    const Bytes bytes = load<Bytes>(from), codes = row ? bytes >> 4 : bytes & 15;
#if defined(__AVX2__)
    const auto byte = [&](int i) { return _mm256_shuffle_epi8((__m256i)tables[i], (__m256i)codes); };
    const __m256i low = byte(0), second = byte(1), third = byte(2), high = byte(3);
    const __m256i low_front = _mm256_unpacklo_epi8(low, second);
    const __m256i low_back = _mm256_unpackhi_epi8(low, second);
    const __m256i high_front = _mm256_unpacklo_epi8(third, high);
    const __m256i high_back = _mm256_unpackhi_epi8(third, high);
    values[0] = (Floats)_mm256_unpacklo_epi16(low_front, high_front);
    values[1] = (Floats)_mm256_unpackhi_epi16(low_front, high_front);
    values[2] = (Floats)_mm256_unpacklo_epi16(low_back, high_back);
    values[3] = (Floats)_mm256_unpackhi_epi16(low_back, high_back);
#else
    for (int i = 0; i < kLanes; ++i) {
      uint32_t bits = 0;
      for (int byte = 0; byte < 4; ++byte) bits |= uint32_t{tables[byte][codes[i]]} << 8 * byte;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      values[place(i) / 8][place(i) % 8] = value;
    }
#endif
  }
};

// The values of floats of 8 bits over kUnit: as float16 of the same bits, whose exponent's bias is 15.
// So a float below the normal ones is read as it is. kUnit is −2^(15 − bias), since the sign is
// stored inverted.
template <int kExponentBits>
struct Float8 {
  static constexpr int kRowsOfByte = 1;
  static constexpr int kMostRows = 4;
  static constexpr float kUnit = kExponentBits == 4 ? -256 : -1;

  typedef int8_t Eight __attribute__((vector_size(8)));
  typedef int16_t Wide __attribute__((vector_size(16)));

  explicit Float8(const ScaledRows&) {}

  static constexpr int place(int column) { return column; }

  void decode(const uint8_t* from, int, Floats* values) const {
#pragma GCC unroll 4
    for (int v = 0; v < kStepVectors; ++v) {
      // The sign fills the upper bits; of e4m3 one too many of them is shifted into the exponent.
      const Eight eight = load<Eight>(from + 8 * v);
      Wide wide = __builtin_convertvector(eight, Wide) << (kExponentBits + 3);
      if (kExponentBits == 4) wide = wide & static_cast<int16_t>(0xBFFF);
      values[v] = from_halves(reinterpret_cast<const uint16_t*>(&wide));
    }
  }
};

// Rows of x (m, k) in the order in which a decoder gives the values of a weight's columns. Each group
// is filled up with zeros to whole vectors of bytes.
template <typename Decoder>
struct OrderedInputs {
  int64_t group, length;  // floats of a group, and of a row
  std::vector<float> rows;

  OrderedInputs(const float* x, int64_t m, const ScaledRows& weight)
      : group((std::min(weight.group, weight.k) + kLanes - 1) / kLanes * kLanes),
        length(group * weight.groups()), rows(m * length) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t column = 0; column < weight.k; ++column) {
        const int64_t g = column / weight.group, c = column % weight.group;
        const int64_t place = c / kLanes * kLanes + Decoder::place(c % kLanes);
        rows[i * length + g * group + place] = x[i * weight.k + column];
      }
    }
  }
};

// Sets `sums` (kRowsOfByte, kRows) to the products of one group of a row of bytes with kRows rows,
// which are `length` floats apart.
template <int kRows, typename Decoder>
inline void group_product(const Decoder& decoder, const uint8_t* codes, int64_t count, const float* x,
                          int64_t length, Floats (*sums)[kRows]) {
  constexpr int kByteRows = Decoder::kRowsOfByte, kChains = kRows == 1 ? 2 : 1;
  Floats parts[kChains][kByteRows][kRows] = {};  // chains of sums that do not wait for each other
  const auto add = [&](const uint8_t* bytes, const float* x) {
#pragma GCC unroll 2
    for (int r = 0; r < kByteRows; ++r) {
      Floats values[kStepVectors];
      decoder.decode(bytes, r, values);
#pragma GCC unroll 4
      for (int v = 0; v < kStepVectors; ++v) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          parts[v % kChains][r][i] += values[v] * load<Floats>(x + i * length + 8 * v);
        }
      }
    }
  };
  int64_t column = 0;
  for (; column + kLanes <= count; column += kLanes) {
    __builtin_prefetch(codes + column + kBytesAhead);  // it may be beyond the end
    add(codes + column, x + column);
  }
  if (column < count) {
    uint8_t few[kLanes] = {};
    std::memcpy(few, codes + column, count - column);
    add(few, x + column);
  }
#pragma GCC unroll 2
  for (int r = 0; r < kByteRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      sums[r][i] = parts[0][r][i];
      if (kChains > 1) sums[r][i] += parts[kChains - 1][r][i];
    }
  }
}

// y (kRows, n) of rows [first, last) of the weight, for the rows of x from `from` on; 2 divides
// `first`.
template <int kRows, typename Decoder>
void scaled_product(const ScaledRows& weight, const OrderedInputs<Decoder>& x, int64_t from,
                    int64_t first, int64_t last, float* y) {
  constexpr int kByteRows = Decoder::kRowsOfByte;
  const Decoder decoder(weight);
  for (int64_t row = first; row < last; row += kByteRows) {
    const uint8_t* codes = weight.codes + row / kByteRows * weight.k;
    const float* inputs = x.rows.data() + from * x.length;
    const int64_t there = std::min<int64_t>(kByteRows, weight.n - row);
    Floats totals[kByteRows][kRows] = {}, sums[kByteRows][kRows];
    for (int64_t g = 0, start = 0; start < weight.k; ++g, start += weight.group) {
      const int64_t count = std::min(weight.group, weight.k - start);
      group_product<kRows>(decoder, codes + start, count, inputs + g * x.group, x.length, sums);
      for (int r = 0; r < there; ++r) {
        const float scale = weight.scale_of(g, row + r) * Decoder::kUnit;
        for (int i = 0; i < kRows; ++i) totals[r][i] += sums[r][i] * scale;
      }
    }
    for (int r = 0; r < there; ++r) {
      for (int i = 0; i < kRows; ++i) {
        y[(from + i) * weight.n + row + r] = sum_of_lanes(totals[r][i]);
      }
    }
  }
}

// y (m, n) of rows [first, last) of the weight; 2 divides `first`.
template <typename Decoder>
void scaled_product(const ScaledRows& weight, const OrderedInputs<Decoder>& x, int64_t m,
                    int64_t first, int64_t last, float* y) {
  int64_t i = 0;
  constexpr int kMostRows = Decoder::kMostRows;
  for (; i + kMostRows <= m; i += kMostRows) {
    scaled_product<kMostRows>(weight, x, i, first, last, y);
  }
  for (; i + 2 <= m; i += 2) scaled_product<2>(weight, x, i, first, last, y);
  if (i < m) scaled_product<1>(weight, x, i, first, last, y);
}

// Calls run(x) with the rows of x as the decoder of the weight wants them.
template <typename Run>
void with_inputs(const ScaledRows& weight, const float* x, int64_t m, const Run& run) {
  if (weight.bits == 4) return run(OrderedInputs<Levels>(x, m, weight));
  if (weight.exponent_bits == 4) return run(OrderedInputs<Float8<4>>(x, m, weight));
  return run(OrderedInputs<Float8<5>>(x, m, weight));
}

}  // namespace jaxmem
