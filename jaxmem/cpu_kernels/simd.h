// Vectors of bytes and of f32, for the instruction set that the compiler aims at.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define JAXMEM_AVX512 1
#endif

// An instruction multiplies bytes and adds the products of four columns to a number of 32 bits.
#if defined(JAXMEM_AVX512) || defined(__AVX2__) && defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
#define JAXMEM_DOT_PRODUCT 1
#endif

// A compiler that finds a large file in front of it stops inlining what innermost loops call.
#define JAXMEM_INLINE inline __attribute__((always_inline))

namespace jaxmem {

#if defined(JAXMEM_AVX512)
constexpr int kLanes = 64;  // bytes of a vector
#elif defined(__ARM_NEON)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 32;
#endif
constexpr int kWords = kLanes / 4;  // numbers of 32 bits of a vector

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes)));
typedef int32_t Ints __attribute__((vector_size(kLanes)));
typedef float Floats __attribute__((vector_size(kLanes)));
typedef float EightFloats __attribute__((vector_size(32)));

inline const char* instruction_set() {
#if defined(JAXMEM_AVX512)
  return "avx512-vnni";
#elif defined(__AVX2__) && defined(__AVXVNNI__)
  return "avx-vnni";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__ARM_FEATURE_DOTPROD)
  return "neon-dot";
#else
  return "baseline";
#endif
}

template <typename Vector>
JAXMEM_INLINE Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename Vector>
JAXMEM_INLINE void store(void* to, const Vector& v) {
  std::memcpy(to, &v, sizeof v);
}

// Whether a lane is not 0, of lanes that are 0 or −1.
JAXMEM_INLINE bool any_lane(Ints lanes) {
#if defined(JAXMEM_AVX512)
  return _mm512_movepi32_mask((__m512i)lanes);
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)lanes);
#else
  for (int i = 0; i < kWords; ++i) {
    if (lanes[i]) return true;
  }
  return false;
#endif
}

// kWords numbers from `from`; those from `count` on are 0 and are not read.
JAXMEM_INLINE Floats load_floats(const float* from, int64_t count) {
  if (count >= kWords) return load<Floats>(from);
  Floats numbers = {};
  std::memcpy(&numbers, from, count * sizeof *from);
  return numbers;
}

// A vector that stays in a register: GCC would read it from memory at each use.
template <typename Vector>
JAXMEM_INLINE Vector load_once(const void* from) {
  Vector v = load<Vector>(from);
#if defined(__AVX2__)
  asm("" : "+v"(v));
#endif
  return v;
}

// Fetches what is read kCodesAhead codes of `width` bits after `from`, into the second cache: into the first one
// fewer bytes arrived in a second (AMD Zen 4). It may be beyond the array's end. Kernels read a weight in the
// order of memory: a CPU foresees nothing else so well, and computes meanwhile. Always inlined, since GCC takes a
// function that only fetches for one without effect, and drops its calls.
constexpr int64_t kCodesAhead = 12288;
JAXMEM_INLINE void fetch_ahead(const uint8_t* from, int width) {
  __builtin_prefetch(from + kCodesAhead * width / 8, 0, 2);
}

// Fetches some bytes into the second cache, perhaps beyond their array's end.
JAXMEM_INLINE void fetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const uint8_t*>(from) + i, 0, 2);
}

// The sum of the kWords numbers of a vector.
JAXMEM_INLINE float sum_of_lanes(const Floats& v) {
#if defined(__AVX2__)
#if defined(JAXMEM_AVX512)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  const __m256 eight = (__m256)v;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
  float sums[kWords];
  store(sums, v);
  for (int half = kWords / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// The sums of the lanes of each of 8 vectors.
inline EightFloats sums_of_lanes(const Floats* v) {
#if defined(__AVX2__)
  const auto half = [&](int i) {
#if defined(JAXMEM_AVX512)
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), _mm512_extractf32x8_ps((__m512)v[i], 1));
#else
    return (__m256)v[i];
#endif
  };
  const auto four = [&](int i) {
    return _mm256_hadd_ps(_mm256_hadd_ps(half(i), half(i + 1)), _mm256_hadd_ps(half(i + 2), half(i + 3)));
  };
  const __m256 first = four(0), last = four(4);  // each: of the lower lanes, then of the upper ones
  return (EightFloats)_mm256_add_ps(_mm256_permute2f128_ps(first, last, 0x20),
                                    _mm256_permute2f128_ps(first, last, 0x31));
#else
  EightFloats sums;
  for (int i = 0; i < 8; ++i) sums[i] = sum_of_lanes(v[i]);
  return sums;
#endif
}

// 8 bytes as f32, signed or not; the first byte is the lowest of `bytes`.
template <typename Byte>
inline EightFloats from_bytes(uint64_t bytes) {
#if defined(__AVX2__)
  const __m128i eight = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
  const __m256i wide =
      static_cast<Byte>(-1) < 0 ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
  return (EightFloats)_mm256_cvtepi32_ps(wide);
#else
  EightFloats numbers;
  for (int i = 0; i < 8; ++i) numbers[i] = static_cast<Byte>(bytes >> 8 * i);
  return numbers;
#endif
}

// kWords signed bytes as f32. GCC converts such vectors number by number.
JAXMEM_INLINE Floats signed_bytes(const void* from) {
#if defined(JAXMEM_AVX512)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(from)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
#else
  Floats numbers;
  for (int i = 0; i < kWords; ++i) numbers[i] = static_cast<const int8_t*>(from)[i];
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

// As many float16 numbers as a vector has lanes, as f32.
template <typename Vector>
inline Vector from_halves(const void* halves) {
#if defined(__AVX512F__) && defined(__F16C__)
  if constexpr (sizeof(Vector) == 64) return (Vector)_mm512_cvtph_ps(load<__m256i>(halves));
#endif
#if defined(__AVX__) && defined(__F16C__)
  if constexpr (sizeof(Vector) == 32) return (Vector)_mm256_cvtph_ps(load<__m128i>(halves));
#endif
  Vector numbers;
  uint16_t bits[sizeof(Vector) / 4];
  std::memcpy(bits, halves, sizeof bits);
  for (int i = 0; i < sizeof(Vector) / 4; ++i) numbers[i] = from_half(bits[i]);
  return numbers;
}

}  // namespace jaxmem
