// Vectors of bytes and the dot products of them, for the instruction set that the compiler aims at.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace jaxmem {

constexpr int kLanes = 32;  // bytes of a vector
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef float Floats __attribute__((vector_size(kLanes)));

inline const char* instruction_set() {
#if defined(__AVX2__) && defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return "avx512-vnni";
#elif defined(__AVX2__) && defined(__AVXVNNI__)
  return "avx-vnni";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "baseline";
#endif
}

template <typename Vector>
inline Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename Vector>
inline void store(void* to, const Vector& v) {
  std::memcpy(to, &v, sizeof v);
}

inline float sum_of_lanes(const Floats& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// 8 bytes as f32, signed or not; the first byte is the lowest of `bytes`.
template <typename Byte>
inline Floats from_bytes(uint64_t bytes) {
#if defined(__AVX2__)
  const __m128i eight = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
  const __m256i wide =
      static_cast<Byte>(-1) < 0 ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
  return (Floats)_mm256_cvtepi32_ps(wide);
#else
  Floats numbers;
  for (int i = 0; i < 8; ++i) numbers[i] = static_cast<Byte>(bytes >> 8 * i);
  return numbers;
#endif
}

// The f32 of a float16's bits. Without arithmetic on subnormal f32, which XLA's threads flush to 0.
inline float from_half(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  const uint32_t size = half & 0x7FFFu, sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = size >= 0x7C00u ? 0x70000000u : 0x38000000u;  // infinity, NaN: 255
  const float tiny = static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &tiny, sizeof tiny);
  bits = (size < 0x400u ? bits : (size << 13) + exponent) | sign;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
#endif
}

// 8 float16 numbers as f32.
inline Floats from_halves(const uint16_t* halves) {
#if defined(__F16C__) && defined(__AVX__)
  return (Floats)_mm256_cvtph_ps(load<__m128i>(halves));
#else
  Floats numbers;
  for (int i = 0; i < 8; ++i) numbers[i] = from_half(halves[i]);
  return numbers;
#endif
}

// x of kLanes columns in fixed point (see columns.h), as the products of codes read it.
struct Digits {
  int8_t high[kLanes], middle[kLanes], low[kLanes];
};
struct Halves {  // in 16 and 8 bits, columns 0, 2, 4, ... before columns 1, 3, 5, ...
  int16_t high[kLanes], low[kLanes];
};

#if defined(__AVX2__)
inline __m256i add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
#endif

// Σ code · x of one row of codes below 2^6, for so few columns that no sum overflows 16 bits.
struct CodeSums {
#if defined(__AVX2__) && (defined(__AVX512VNNI__) && defined(__AVX512VL__) || defined(__AVXVNNI__))
  __m256i high = {}, middle = {}, low = {};  // of 4 columns in a lane

  static __m256i add_products(__m256i sum, __m256i codes, const int8_t* digits) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, codes, load<__m256i>(digits));
#else
    return _mm256_dpbusd_avx_epi32(sum, codes, load<__m256i>(digits));
#endif
  }

  Floats lanes() const {
    const __m256i above = add(_mm256_slli_epi32(high, 14), _mm256_slli_epi32(middle, 7));
    return (Floats)_mm256_cvtepi32_ps(add(above, low));
  }
#elif defined(__AVX2__)
  __m256i high = {}, middle = {}, low = {};  // of 2 columns in a lane

  static __m256i add_products(__m256i sum, __m256i codes, const int8_t* digits) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, load<__m256i>(digits)));
  }

  Floats lanes() const {
    const __m256i above = add(_mm256_madd_epi16(high, _mm256_set1_epi16(1 << 14)),
                              _mm256_madd_epi16(middle, _mm256_set1_epi16(1 << 7)));
    return (Floats)_mm256_cvtepi32_ps(add(above, _mm256_madd_epi16(low, _mm256_set1_epi16(1))));
  }
#else
  int32_t high[8] = {}, middle[8] = {}, low[8] = {};

  static void add_products(int32_t* sum, Bytes codes, const int8_t* digits) {
    for (int i = 0; i < kLanes; ++i) sum[i % 8] += codes[i] * digits[i];
  }

  Floats lanes() const {
    Floats sum;
    for (int i = 0; i < 8; ++i) sum[i] = static_cast<float>(high[i] * 16384 + middle[i] * 128 + low[i]);
    return sum;
  }
#endif

  void add_products(Bytes codes, const Digits& x) {
#if defined(__AVX2__)
    high = add_products(high, (__m256i)codes, x.high);
    middle = add_products(middle, (__m256i)codes, x.middle);
    low = add_products(low, (__m256i)codes, x.low);
#else
    add_products(high, codes, x.high);
    add_products(middle, codes, x.middle);
    add_products(low, codes, x.low);
#endif
  }
};

// The same of signed codes of at most 8 bits, for at most 4096 columns.
struct SignedSums {
#if defined(__AVX2__)
  __m256i high = {}, low = {};

  void add_products(Bytes codes, const Halves& x) {
    const __m256i both = (__m256i)codes;
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8);
    const __m256i odd = _mm256_srai_epi16(both, 8);
    const auto product = [](__m256i a, const int16_t* b) {
      return _mm256_madd_epi16(a, load<__m256i>(b));
    };
    high = add(high, add(product(even, x.high), product(odd, x.high + kLanes / 2)));
    low = add(low, add(product(even, x.low), product(odd, x.low + kLanes / 2)));
  }

  Floats lanes() const {
    return (Floats)_mm256_cvtepi32_ps(high) * 128 + (Floats)_mm256_cvtepi32_ps(low);
  }
#else
  int32_t high[8] = {}, low[8] = {};

  void add_products(Bytes codes, const Halves& x) {
    for (int i = 0; i < kLanes; ++i) {
      const int place = i / 2 + i % 2 * (kLanes / 2), code = static_cast<int8_t>(codes[i]);
      high[i % 8] += code * x.high[place];
      low[i % 8] += code * x.low[place];
    }
  }

  Floats lanes() const {
    Floats sum;
    for (int i = 0; i < 8; ++i) sum[i] = static_cast<float>(high[i]) * 128 + static_cast<float>(low[i]);
    return sum;
  }
#endif
};

}  // namespace jaxmem
