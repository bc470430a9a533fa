// y = Σ_g scale_g · Σ_(k in g) value(code_k) · x_k for rows of codes of 4 bits, whose values are in a
// table, and of floats of 8 bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "columns.h"
#include "packing.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

constexpr int kStepVectors = 4;  // vectors of f32 that kLanes codes become

// The rows of a weight, as codecs/scaled.py stores them.
struct ScaledRows : ScaledMatrix {
  float unit;            // of the scales
  int bits;              // 4 or 8
  int exponent_bits;     // of floats of 8 bits: 4 or 5
  const float* levels;   // the values of the 16 codes of 4 bits
  const uint8_t* codes;  // (n · bits/8, k); floats of 8 bits have their highest bit inverted
};

#if defined(__AVX2__)
// Has f32 below the normal ones read as they are; XLA's threads read 0.
struct ReadSubnormals {
  const unsigned flags = _mm_getcsr();

  ReadSubnormals() { _mm_setcsr(flags & ~0x40u); }
  ~ReadSubnormals() { _mm_setcsr(flags); }
};
#endif

// The values of 16 codes of 4 bits.
struct Levels {
  static constexpr int kRowsOfByte = 2;
  static constexpr int kMostRows = kWords == 16 ? 4 : 2;  // of x, whose sums stay in registers
  static constexpr int kInputExponent = 0;
  static constexpr float kUnit = 1;

  // `place` is where the value of a column is among those that `decode` writes: the values in the low
  // 4 bits of kLanes bytes (row 0), or in their high 4 bits (row 1).
#if defined(JAXMEM_AVX512)
  Floats table;

  explicit Levels(const ScaledRows& weight) : table(load<Floats>(weight.levels)) {}

  static constexpr int place(int column) { return column % 4 * kWords + column / 4; }

  void decode(const uint8_t* from, int row, Floats* values) const {
    const Ints codes = load<Ints>(from);
#pragma GCC unroll 4
    for (int v = 0; v < kStepVectors; ++v) {  // the index of a value is in the 4 lowest bits
      values[v] = (Floats)_mm512_permutexvar_ps((__m512i)(codes >> (8 * v + 4 * row)), (__m512)table);
    }
  }
#elif defined(__AVX2__)
  Bytes tables[4];  // of one byte of an f32 each; both halves of a vector are equal

  explicit Levels(const ScaledRows& weight) {
    for (int i = 0; i < kLanes; ++i) {
      uint32_t bits;
      std::memcpy(&bits, weight.levels + i % 16, sizeof bits);
      for (int byte = 0; byte < 4; ++byte) tables[byte][i] = bits >> 8 * byte & 255;
    }
  }

  // Each half of a vector of bytes becomes its own half of four vectors of f32.
  static constexpr int place(int column) { return column % 16 / 4 * 8 + column / 16 * 4 + column % 4; }

  void decode(const uint8_t* from, int row, Floats* values) const {
    const Bytes bytes = load<Bytes>(from), codes = row ? bytes >> 4 : bytes & 15;
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
  }
#else
  const float* table;

  explicit Levels(const ScaledRows& weight) : table(weight.levels) {}

  static constexpr int place(int column) { return column; }

  void decode(const uint8_t* from, int row, Floats* values) const {
    for (int i = 0; i < kLanes; ++i) values[i / kWords][i % kWords] = table[from[i] >> 4 * row & 15];
  }
#endif
};

// The values of floats of 8 bits over kUnit: as wider floats of the same bits. So a float below the normal
// ones is read as it is. kUnit is −2^(the wider float's bias − bias), since the sign is stored inverted.
template <int kExponentBits>
struct Float8 {
  static constexpr int kRowsOfByte = 1;
  static constexpr int kMostRows = 4;

  explicit Float8(const ScaledRows&) {}

  static constexpr int place(int column) { return column; }

#if defined(__AVX2__) && !defined(JAXMEM_AVX512)
  // As f32, which takes half the time of float16 here. Values are below 2^-96, so x is multiplied first.
  static constexpr int kInputExponent = 100;
  static constexpr float kUnit = kExponentBits == 4 ? -0x1p120f : -0x1p112f;

  ReadSubnormals subnormals;

  void decode(const uint8_t* from, int, Floats* values) const {
    constexpr int kShift = kExponentBits == 4 ? 20 : 21;
#pragma GCC unroll 4
    for (int v = 0; v < kStepVectors; ++v) {
      const Ints wide = (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(from + kWords * v)));
      values[v] = (Floats)(wide << kShift & static_cast<int>(0x80000000u | 0x7Fu << kShift));
    }
  }
#else
  static constexpr int kInputExponent = 0;
  static constexpr float kUnit = kExponentBits == 4 ? -256 : -1;

  typedef int8_t Narrow __attribute__((vector_size(kWords)));
  typedef int16_t Wide __attribute__((vector_size(2 * kWords)));

  static Wide widened(Narrow bytes) {
#if defined(JAXMEM_AVX512)
    return (Wide)_mm256_cvtepi8_epi16((__m128i)bytes);
#else
    return __builtin_convertvector(bytes, Wide);
#endif
  }

  void decode(const uint8_t* from, int, Floats* values) const {
#pragma GCC unroll 4
    for (int v = 0; v < kStepVectors; ++v) {
      // The sign fills the upper bits; of e4m3 one too many of them is shifted into the exponent.
      Wide wide = widened(load<Narrow>(from + kWords * v)) << (kExponentBits + 3);
      if (kExponentBits == 4) wide = wide & static_cast<int16_t>(0xBFFF);
      values[v] = from_halves<Floats>(reinterpret_cast<const uint16_t*>(&wide));
    }
  }
#endif
};

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

// Sets `sums` (kRowsOfByte, kRows) to the products of one group of a row of bytes with kRows rows,
// which are `length` floats apart.
template <int kRows, typename Decoder>
inline void group_product(const Decoder& decoder, const uint8_t* codes, int64_t count, const float* x,
                          int64_t length, Floats (*sums)[kRows]) {
  constexpr int kCodes = Decoder::kRowsOfByte, kChains = kRows > 1 ? 1 : kWords == 16 ? 4 / kCodes : 2;
  Floats parts[kChains][kCodes][kRows] = {};  // chains of sums that do not wait for each other
  const auto add = [&](const uint8_t* bytes, const float* x) {
#pragma GCC unroll 2
    for (int r = 0; r < kCodes; ++r) {
      Floats values[kStepVectors];
      decoder.decode(bytes, r, values);
#pragma GCC unroll 4
      for (int v = 0; v < kStepVectors; ++v) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          parts[v % kChains][r][i] += values[v] * load<Floats>(x + i * length + kWords * v);
        }
      }
    }
  };
  int64_t column = 0;
  for (; column + kLanes <= count; column += kLanes) {
    fetch_ahead(codes + column);
    add(codes + column, x + column);
  }
  if (column < count) {
    uint8_t few[kLanes] = {};
    std::memcpy(few, codes + column, count - column);
    add(few, x + column);
  }
#pragma GCC unroll 2
  for (int r = 0; r < kCodes; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      sums[r][i] = parts[0][r][i];
#pragma GCC unroll 3
      for (int chain = 1; chain < kChains; ++chain) sums[r][i] += parts[chain][r][i];
    }
  }
}

// y (kRows, n) of rows [first, last) of the weight, at most kBlockRows, for the rows of x from `from`
// on; 8 divides `first`. `scales` are those of the block, (vectors of 8 rows, groups).
template <int kRows, typename Decoder>
void block_product(const ScaledRows& weight, const EightFloats* scales,
                   const OrderedInputs<Decoder>& x, int64_t from, int64_t first, int64_t last, float* y) {
  constexpr int kCodes = Decoder::kRowsOfByte;
  const Decoder decoder(weight);
  const int64_t groups = weight.groups();
  for (int64_t row = first; row < last; row += kCodes) {
    const uint8_t* codes = weight.codes + row / kCodes * weight.k;
    const float* inputs = x.rows.data() + from * x.length;
    const EightFloats* row_scales = scales + (row - first) / kByteRows * groups;
    Floats totals[kCodes][kRows] = {}, sums[kCodes][kRows];
    for (int64_t g = 0, start = 0; g < groups; ++g, start += weight.group) {
      const int64_t count = std::min(weight.group, weight.k - start);
      group_product<kRows>(decoder, codes + start, count, inputs + g * x.group, x.length, sums);
#pragma GCC unroll 2
      for (int r = 0; r < kCodes; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) totals[r][i] += sums[r][i] * row_scales[g][row % kByteRows + r];
      }
    }
    for (int r = 0; r < std::min<int64_t>(kCodes, last - row); ++r) {
      for (int i = 0; i < kRows; ++i) {
        const float* units = x.units.data() + 2 * (from + i);
        y[(from + i) * weight.n + row + r] = sum_of_lanes(totals[r][i]) * units[0] * units[1];
      }
    }
  }
}

// y (m, n) of rows [first, last) of the weight; 8 divides `first`.
template <typename Decoder>
void scaled_product(const ScaledRows& weight, const OrderedInputs<Decoder>& x, int64_t m,
                    int64_t first, int64_t last, float* y) {
  constexpr int kMostRows = Decoder::kMostRows;
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
    int64_t i = 0;
    for (; i + kMostRows <= m; i += kMostRows) {
      block_product<kMostRows>(weight, scales.data(), x, i, row, end, y);
    }
    for (; kMostRows > 2 && i + 2 <= m; i += 2) block_product<2>(weight, scales.data(), x, i, row, end, y);
    for (; i < m; ++i) block_product<1>(weight, scales.data(), x, i, row, end, y);
  }
}

// Calls run(x) with the rows of x as the decoder of the weight wants them.
template <typename Run>
void with_inputs(const ScaledRows& weight, const float* x, int64_t m, const Run& run) {
  if (weight.bits == 4) return run(OrderedInputs<Levels>(x, m, weight));
  if (weight.exponent_bits == 4) return run(OrderedInputs<Float8<4>>(x, m, weight));
  return run(OrderedInputs<Float8<5>>(x, m, weight));
}

}  // namespace jaxmem
