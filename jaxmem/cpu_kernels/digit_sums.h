// Sums of products of codes with x in fixed point (see columns.h), for each instruction set.
#pragma once

#include <cstdint>

#include "simd.h"

namespace jaxmem {

// Vectors of numbers of 32 bits that kLanes columns are.
constexpr int kQuarters = kLanes / kWords;

// Stores numbers that fit so, in their order: the kLanes numbers of four vectors.
template <typename Narrow>
JAXMEM_INLINE void store_narrow(const Ints* values, Narrow* to) {
#if defined(__AVX2__) && !defined(JAXMEM_AVX512)  // which a compiler makes of one number at a time
  const auto shorts = [&](int i) { return _mm256_packs_epi32((__m256i)values[i], (__m256i)values[i + 1]); };
  if constexpr (sizeof(Narrow) == 1) {  // each half of a vector is packed by itself
    const __m256i bytes = _mm256_packs_epi16(shorts(0), shorts(2));
    store(to, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  } else {
    store(to, _mm256_permute4x64_epi64(shorts(0), 0xD8));
    store(to + kLanes / 2, _mm256_permute4x64_epi64(shorts(2), 0xD8));
  }
#else
  typedef Narrow Some __attribute__((vector_size(kWords * sizeof(Narrow))));
  for (int q = 0; q < kQuarters; ++q) store(to + q * kWords, __builtin_convertvector(values[q], Some));
#endif
}

// x of kLanes columns in fixed point, as products with codes read it, in three signed digits of 8 bits.
struct alignas(kLanes) Digits {
  int8_t high[kLanes] = {}, middle[kLanes] = {}, low[kLanes] = {};

  void set(const Ints* values) {
    Ints tops[kQuarters], middles[kQuarters], rests[kQuarters];
#pragma GCC unroll 4
    for (int q = 0; q < kQuarters; ++q) {
      const Ints above = (values[q] + 64) >> 7;
      tops[q] = (above + 64) >> 7;
      middles[q] = above - (tops[q] << 7);
      rests[q] = values[q] - (above << 7);
    }
    store_narrow(tops, high);
    store_narrow(middles, middle);
    store_narrow(rests, low);
  }
};

// The same in 16 and 8 bits.
struct alignas(kLanes) Halves {
  int16_t high[kLanes] = {}, low[kLanes] = {};

  void set(const Ints* values) {
    Ints tops[kQuarters], rests[kQuarters];
#pragma GCC unroll 4
    for (int q = 0; q < kQuarters; ++q) {
      tops[q] = (values[q] + 64) >> 7;
      rests[q] = values[q] - (tops[q] << 7);
    }
    store_narrow(tops, high);
    store_narrow(rests, low);
  }
};

// high · 2^14 + middle · 2^7 + low in f32.
inline Floats joined(Ints high, Ints middle, Ints low) {
  return __builtin_convertvector(high, Floats) * 0x1p14f +
         __builtin_convertvector((middle << 7) + low, Floats);
}

// Whether high · 2^14 + middle · 2^7 + low of codes of so many bits are summed in integers of 32 bits.
constexpr bool fits_int(int bits) { return bits < 7; }

// Whether these sums are one: each digit's is shifted before the next one is added. Sums of 16 bits do not fit so.
#if defined(JAXMEM_DOT_PRODUCT)
constexpr bool are_joined(int bits) { return fits_int(bits); }
#else
constexpr bool are_joined(int) { return false; }
#endif

// Whether the halves of a vector may be two rows of codes of so many bits (see two_rows.h).
constexpr bool has_two_rows(int bits) {
#if defined(__AVX2__) && !defined(JAXMEM_AVX512) && !defined(__AVXVNNI__)
  return bits == 4;
#else
  return false;
#endif
}

#if defined(JAXMEM_AVX512)
// The lanes of two vectors, of which neighbours are added, by turns.
JAXMEM_INLINE Ints in_turns(Ints first, Ints last) {
  return (Ints)_mm512_add_epi32(_mm512_unpacklo_epi32((__m512i)first, (__m512i)last),
                                _mm512_unpackhi_epi32((__m512i)first, (__m512i)last));
}
#endif

// Lanes of the same sum: all of it in the first half where a vector may have two rows; with AVX-512 as the sums of
// two rows in turns.
template <int kBits>
inline Ints in_first_half(Ints lanes) {
#if defined(__AVX2__) && !defined(JAXMEM_AVX512)
  const __m128i first = _mm256_castsi256_si128((__m256i)lanes), last = _mm256_extracti128_si256((__m256i)lanes, 1);
  if (has_two_rows(kBits)) return (Ints)_mm256_set_m128i(__m128i{}, _mm_add_epi32(first, last));
#endif
#if defined(JAXMEM_AVX512)
  return in_turns(lanes, lanes);
#else
  return lanes;
#endif
}

// Whether products of codes of so many bits keep the codes' sign, so that their sums start at 0.
constexpr bool starts_at_zero(int bits) {
#if defined(JAXMEM_AVX512) || defined(__AVX2__) && defined(__AVXVNNI__)
  return false;  // the instruction has one factor without a sign
#else
  return bits == 8;
#endif
}

// The code that means 0, if there is no zero point.
constexpr uint8_t middle_code(int bits) { return bits == 8 ? 0 : 1 << (bits - 1); }

// A vector of codes of 8 bits that is still in memory, from where a CPU reads it as wider numbers.
struct StoredBytes {
  const uint8_t* from;

  operator Bytes() const { return load<Bytes>(from); }
};

// Σ code · x of one row of codes, of at most kMostVectors vectors. FixedPoint::starts has the value at
// which it starts, −Σ middle_code · x, so only the sum of (code − middle_code) · x must fit its integers.
template <int kBits>
struct DigitSums {
  using Vector = Digits;
  static constexpr bool kFitsInt = fits_int(kBits), kIsJoined = are_joined(kBits), kStartsAtZero = starts_at_zero(kBits);
#if defined(JAXMEM_AVX512) || defined(__AVX2__) && defined(__AVXVNNI__)
  // A lane adds 4 columns, each below 2^(kBits−1) · 2^21 in size, and `joined` needs the sum below 2^31.
  static constexpr int kMostVectors = kBits >= 7 ? 64 : (1 << (9 - kBits)) - 1;
  Ints high = {}, middle = {}, low = {};

  static JAXMEM_INLINE Ints add_products(Ints sum, Bytes codes, Bytes digits) {
    if constexpr (kBits == 8) codes ^= 128;
#if defined(JAXMEM_AVX512)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)digits);
#else
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)digits);
#endif
  }

  JAXMEM_INLINE Ints integer_lanes() const { return (high << 14) + (middle << 7) + low; }
  JAXMEM_INLINE Floats lanes() const {
    if constexpr (fits_int(kBits)) return __builtin_convertvector(integer_lanes(), Floats);
    else return joined(high, middle, low);
  }
#elif defined(__AVX2__)
  // A lane of 16 bits adds 2 columns, each of at most 2^(kBits−1) · 127 in size.
  static constexpr int kMostVectors = 32767 / (2 * 127 << (kBits - 1));
  typedef int16_t Sums __attribute__((vector_size(kLanes)));
  Sums high = {}, middle = {}, low = {};

  static JAXMEM_INLINE Sums add_products(Sums sum, Bytes codes, Bytes digits) {
    return sum + (Sums)_mm256_maddubs_epi16((__m256i)codes, (__m256i)digits);
  }

  static JAXMEM_INLINE Ints wide(Sums sum, int16_t unit) {
    return (Ints)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(unit));
  }

  JAXMEM_INLINE Ints integer_lanes() const { return wide(high, 1 << 14) + wide(middle, 1 << 7) + wide(low, 1); }
  JAXMEM_INLINE Floats lanes() const {
    if constexpr (fits_int(kBits)) return __builtin_convertvector(integer_lanes(), Floats);
    else return joined(wide(high, 1), wide(middle, 1), wide(low, 1));
  }
#else
  static constexpr int kMostVectors = kBits >= 7 ? 64 : (1 << (9 - kBits)) - 1;
  Ints high = {}, middle = {}, low = {};

  // Codes of 8 bits keep their sign here, since the dot product has signed factors.
  static JAXMEM_INLINE Ints add_products(Ints sum, Bytes codes, Bytes digits) {
#if defined(__ARM_FEATURE_DOTPROD)
    return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)digits);
#else
    for (int i = 0; i < kLanes; ++i) {
      sum[i / 4] += (kBits == 8 ? static_cast<int8_t>(codes[i]) : codes[i]) * static_cast<int8_t>(digits[i]);
    }
    return sum;
#endif
  }

  JAXMEM_INLINE Ints integer_lanes() const { return (high << 14) + (middle << 7) + low; }
  JAXMEM_INLINE Floats lanes() const {
    if constexpr (fits_int(kBits)) return __builtin_convertvector(integer_lanes(), Floats);
    else return joined(high, middle, low);
  }
#endif

  struct Registers {
    Bytes high, middle, low;
    explicit Registers(const Digits& x)
        : high(load_once<Bytes>(x.high)), middle(load_once<Bytes>(x.middle)), low(load_once<Bytes>(x.low)) {}
  };

  JAXMEM_INLINE void add_products(Bytes codes, const Registers& x) {
    high = add_products(high, codes, x.high);
    middle = add_products(middle, codes, x.middle);
    low = add_products(low, codes, x.low);
  }

  void subtract(const DigitSums& other) {
    high -= other.high, middle -= other.middle, low -= other.low;
  }
};

#if defined(__AVX2__) && !defined(JAXMEM_AVX512) && !defined(__AVXVNNI__)
// Two products of signed codes with digits of 8 bits may not fit 16 bits.
template <>
struct DigitSums<8> {
  using Vector = Halves;
  static constexpr bool kFitsInt = false, kIsJoined = false, kStartsAtZero = true;
  static constexpr int kMostVectors = 128;
  Ints high = {}, low = {};

  struct Registers {
    Shorts high[2], low[2];
    explicit Registers(const Halves& x)
        : high{load_once<Shorts>(x.high), load_once<Shorts>(x.high + kLanes / 2)},
          low{load_once<Shorts>(x.low), load_once<Shorts>(x.low + kLanes / 2)} {}
  };

  JAXMEM_INLINE void add_products(StoredBytes codes, const Registers& x) {
    const auto wide = [&](int i) { return _mm256_cvtepi8_epi16(load<__m128i>(codes.from + i)); };
    const __m256i first = wide(0), last = wide(kLanes / 2);
    const auto product = [](__m256i a, Shorts b) { return (Ints)_mm256_madd_epi16(a, (__m256i)b); };
    high += product(first, x.high[0]) + product(last, x.high[1]);
    low += product(first, x.low[0]) + product(last, x.low[1]);
  }

  JAXMEM_INLINE void add_products(Bytes codes, const Registers& x) {
    add_products(StoredBytes{reinterpret_cast<const uint8_t*>(&codes)}, x);
  }

  JAXMEM_INLINE Floats lanes() const {
    return __builtin_convertvector(high, Floats) * 128 + __builtin_convertvector(low, Floats);
  }

  void subtract(const DigitSums&) {}  // codes are centred
};
#endif

#if defined(JAXMEM_DOT_PRODUCT)
// x of kLanes columns in 8 bits, and in each byte the code that means 0.
struct alignas(kLanes) RoundedVector {
  int8_t codes[kLanes], zeros[kLanes];
};

// Σ code · (code of x − zero) of one row of codes.
template <int kBits>
struct RoundedSums {
  using Vector = RoundedVector;
  static constexpr bool kFitsInt = false, kIsJoined = false, kStartsAtZero = false;
  static constexpr int kMostVectors = 64;
  Ints sum = {}, less = {};

  struct Registers {
    Bytes codes, zeros;
    explicit Registers(const RoundedVector& x) : codes(load_once<Bytes>(x.codes)), zeros(load_once<Bytes>(x.zeros)) {}
  };

  JAXMEM_INLINE void add_products(Bytes codes, const Registers& x) {
    sum = DigitSums<kBits>::add_products(sum, codes, x.codes);
    less = DigitSums<kBits>::add_products(less, codes, x.zeros);
  }

  JAXMEM_INLINE Ints integer_lanes() const { return sum - less; }
  JAXMEM_INLINE Floats lanes() const { return __builtin_convertvector(integer_lanes(), Floats); }
  JAXMEM_INLINE void operator=(const Ints& start) { sum = start; }
};
#endif

}  // namespace jaxmem
