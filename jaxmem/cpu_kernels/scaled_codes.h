// Codes of 4 bits whose values are in a table, and floats of 8 bits, as vectors of f32.
#pragma once

#include <cstdint>
#include <cstring>

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

// The values of 16 codes of 4 bits. With AVX2, one row of x has a product of its own (level_rows.h).
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

}  // namespace jaxmem
