// Products of codes of 4 bits in groups of 32 columns on AVX2. A vector has 16 columns of each of two rows, so
// that half as many vectors are left when a group ends, where sums become f32.
#pragma once

#include <cstdint>
#include <cstring>

#include "columns.h"
#include "digit_sums.h"
#include "scales.h"
#include "simd.h"
#include "stored_integers.h"

namespace jaxmem {

// Whether the products of a weight are those of this file.
template <int kBits>
inline bool are_two_rows(const IntegerRows& weight) {
  return has_two_rows(kBits) && !weight.patterns[0] && weight.group == kLanes && weight.k % kLanes == 0;
}

#if defined(__AVX2__)
// Σ scale · code · x of the two rows of `bytes`, as lanes to be added: four for each row. Their scales are
// the first two of each 8. With `kCentred`, codes count less 8.
template <bool kCentred>
JAXMEM_INLINE __m256 two_rows_lanes(const uint8_t* bytes, int64_t groups, const float* scales, const FixedPoint<4>& x) {
  const __m256i rows = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), shifts = _mm256_slli_epi32(rows, 2);
  const auto unit = [](int16_t size) { return _mm256_set1_epi16(size); };
  const auto both = [](const void* from) { return _mm256_broadcastsi128_si256(load<__m128i>(from)); };
  __m256 total = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; ++g, bytes += kLanes, scales += kByteRows) {
    fetch_ahead(bytes, 4);
    const auto codes = [&](int column) {
      return _mm256_and_si256(_mm256_srlv_epi32(both(bytes + column), shifts), _mm256_set1_epi8(15));
    };
    const __m256i first = codes(0), last = codes(16);
    const auto sum = [&](const int8_t* digits) {
      return _mm256_add_epi16(_mm256_maddubs_epi16(first, both(digits)), _mm256_maddubs_epi16(last, both(digits + 16)));
    };
    const Digits& digits = x.vectors[g];
    __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(sum(digits.high), unit(1 << 14)),
                                    _mm256_madd_epi16(sum(digits.middle), unit(1 << 7)));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(sum(digits.low), unit(1)));
    if (kCentred) sums = _mm256_add_epi32(sums, both(&x.joined_starts[g]));
    double pair;
    std::memcpy(&pair, scales, sizeof pair);
    const __m256 scale = _mm256_permutevar_ps((__m256)_mm256_set1_pd(pair), rows);
    total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, total);
  }
  return total;
}

// Σ scale · code · x of 8 rows, whose bytes begin at `bytes`; if `is_centred`, codes count less 8.
inline EightFloats two_rows_product(const uint8_t* bytes, int64_t groups, const EightFloats* group_scales,
                                    const FixedPoint<4>& x, bool is_centred) {
  __m256 lanes[kByteRows / 2];
  for (int pair = 0; pair < kByteRows / 2; ++pair, bytes += groups * kLanes) {
    const float* scales = reinterpret_cast<const float*>(group_scales) + 2 * pair;
    lanes[pair] = is_centred ? two_rows_lanes<true>(bytes, groups, scales, x)
                             : two_rows_lanes<false>(bytes, groups, scales, x);
  }
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(lanes[0], lanes[1]), _mm256_hadd_ps(lanes[2], lanes[3]));
  return (EightFloats)_mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
#endif

}  // namespace jaxmem
