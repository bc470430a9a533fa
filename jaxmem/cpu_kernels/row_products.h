// Σ_g scale_g · Σ code · x of rows of packed integer codes with one row of x.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "columns.h"
#include "digit_sums.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

// Rows that are multiplied together: some that share a byte, so that bytes are read in order.
template <bool kRounds>
constexpr int rows_at_once(int bits) {
#if defined(JAXMEM_AVX512)
  if (bits == 3 || bits == 6) return 4;  // those of a byte of the field of 2 bits, which is read once
#endif
  return bits == 8 && kRounds ? 1 : 2;
}

// The first half of one vector, and the last half of another one.
inline Floats joined_halves(Floats first, Floats last) {
  for (int i = kWords / 2; i < kWords; ++i) first[i] = last[i];
  return first;
}

// One number in the first half of the lanes, and another one in the last half.
JAXMEM_INLINE Floats in_halves(float first, float last) {
#if defined(JAXMEM_AVX512)
  return (Floats)_mm512_mask_broadcastss_ps(_mm512_set1_ps(first), 0xFF00, _mm_set_ss(last));
#else
  return joined_halves(Floats{} + first, Floats{} + last);
#endif
}

// Sets totals[kRow] to Σ scale · code · x of each of some rows, as lanes to be added. `rows` gives their
// codes, and scales[8 · g + kRow] are their scales; `kPaired` says whether a chunk is of two groups.
template <bool kPaired, int... kRow, typename Rows, typename X>
inline void rows_product(const Rows& rows, const float* scales, const std::vector<Chunk>& chunks, const X& x,
                         Floats* totals) {
  using Sums = typename X::Sums;
  Floats sums[kByteRows] = {}, last_sums[kByteRows] = {};  // the second ones with the next group's scale
  for (size_t c = 0; c < chunks.size(); ++c) {
    const Chunk& chunk = chunks[c];
    const auto* vector = x.vectors.data() + chunk.vector;
    Sums products[kByteRows];
    ((products[kRow] = x.starts[c]), ...);
    int i = 0;
    for (; i + kLanes <= chunk.count; i += kLanes) {
      const typename Sums::Registers digits(*vector++);
      (products[kRow].add_products(
           rows.template codes<kRow, true>(chunk.column + i, kLanes), digits), ...);
    }
    if (i < chunk.count) {
      const int few = chunk.count - i;
      const typename Sums::Registers digits(*vector);
      (products[kRow].add_products(
           rows.template codes<kRow, false>(chunk.column + i, few), digits), ...);
    }
    const float* scale = scales + kByteRows * chunk.group;
    ((sums[kRow] += products[kRow].lanes() * scale[kRow]), ...);
    if constexpr (kPaired) {
      const float* next = scale + (chunk.count > kLanes / 2 ? kByteRows : 0);
      ((last_sums[kRow] += products[kRow].lanes() * next[kRow]), ...);
    }
  }
  ((totals[kRow] = kPaired ? joined_halves(sums[kRow], last_sums[kRow]) : sums[kRow]), ...);
}

// The most vectors of a group whose sums fit integers before they start at −Σ middle_code · x.
template <typename Sums>
constexpr int kMostGroupVectors = Sums::kFitsInt ? Sums::kMostVectors / 2 : Sums::kMostVectors;

// Σ code · x of a row in kVectors vectors from a column on, in the steps of x, less where it starts.
template <typename Sums, int kVectors, int kRow, typename Rows>
JAXMEM_INLINE Ints joined_lanes(const Rows& rows, int64_t column, const typename Sums::Registers* digits) {
  Bytes codes[kVectors];
  Ints sum = {};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) codes[v] = rows.template codes<kRow, true>(column + v * kLanes, kLanes);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum = Sums::add_products(sum, codes[v], digits[v].high);
  sum <<= 7;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum = Sums::add_products(sum, codes[v], digits[v].middle);
  sum <<= 7;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum = Sums::add_products(sum, codes[v], digits[v].low);
  return sum;
}

#if defined(JAXMEM_AVX512)
// Whether the lanes of two rows are added to one vector, in turns, which has one scale vector.
template <typename Sums>
constexpr bool kInTurns = Sums::kIsJoined;

// Σ code · x of rows kRow and kRow + 1 in turns.
template <int kVectors, int kRow, typename Rows, typename X>
JAXMEM_INLINE Floats lanes_in_turns(const Rows& rows, int64_t column, const typename X::Sums::Registers* digits,
                                    const X& x, int64_t chunk) {
  const Ints lanes = in_turns(joined_lanes<typename X::Sums, kVectors, kRow>(rows, column, digits),
                              joined_lanes<typename X::Sums, kVectors, kRow + 1>(rows, column, digits));
  // What overflows in between does not matter to the sum, which fits.
  const __m512i sum = _mm512_add_epi32((__m512i)lanes, (__m512i)x.joined_starts[chunk]);
  return (Floats)_mm512_cvtepi32_ps(sum);
}

// Two scales by turns; with kPaired those of the next group in the last half of the lanes.
template <bool kPaired>
JAXMEM_INLINE Floats two_scales(const float* scales) {
  double first, last;
  std::memcpy(&first, scales, sizeof first);
  if constexpr (!kPaired) return (Floats)_mm512_set1_pd(first);
  std::memcpy(&last, scales + kByteRows, sizeof last);
  return (Floats)_mm512_mask_broadcastsd_pd(_mm512_set1_pd(first), 0xF0, _mm_set_sd(last));
}
#endif

// Σ code · x of a row in kVectors vectors from a column on, in the steps of x.
template <int kVectors, int kRow, typename Rows, typename X>
JAXMEM_INLINE Floats group_lanes(const Rows& rows, int64_t column, const typename X::Sums::Registers* digits,
                                 const X& x, int64_t chunk) {
  using Sums = typename X::Sums;
  if constexpr (Sums::kIsJoined) {  // with AVX-512 rows come two at a time
    const Ints sum = joined_lanes<Sums, kVectors, kRow>(rows, column, digits);
    return __builtin_convertvector(sum + x.joined_starts[chunk], Floats);
  } else {
    Sums sums;
    if constexpr (!Sums::kFitsInt && !Sums::kStartsAtZero) sums = x.starts[chunk];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums.add_products(rows.template codes<kRow, true>(column + v * kLanes, kLanes), digits[v]);
    }
    if constexpr (Sums::kFitsInt) return __builtin_convertvector(sums.integer_lanes() + x.joined_starts[chunk], Floats);
    else return sums.lanes();
  }
}

// `rows_product` where each of `groups` groups is kVectors whole vectors; or half of one, if kVectors is 0, and 2
// divides `groups`.
template <int kVectors, int... kRow, typename Rows, typename X>
JAXMEM_INLINE void whole_groups_product(const Rows& rows, const float* scales, int64_t groups, const X& x,
                                        Floats* totals) {
  constexpr bool kPaired = kVectors == 0;
  constexpr int kCount = kPaired ? 1 : kVectors;
  using Sums = typename X::Sums;
  Floats sums[kByteRows] = {};
  const auto* vector = x.vectors.data();
  const int64_t chunks = kPaired ? groups / 2 : groups;
  for (int64_t c = 0; c < chunks; ++c, vector += kCount, scales += kByteRows * (kPaired ? 2 : 1)) {
    // GCC would read digits again for each row.
    using Registers = typename Sums::Registers;
    const auto with = [&](const Registers* digits) __attribute__((always_inline)) {
      const auto add = [&](auto row) __attribute__((always_inline)) {
        constexpr int r = decltype(row)::value;
#if defined(JAXMEM_AVX512)
        if constexpr (kInTurns<Sums>) {
          if constexpr (r % 2 == 0) {
            const Floats lanes = lanes_in_turns<kCount, r>(rows, c * kCount * kLanes, digits, x, c);
            sums[r] += lanes * two_scales<kPaired>(scales + r);
          }
        } else
#endif
        {
          const Floats lanes = group_lanes<kCount, r>(rows, c * kCount * kLanes, digits, x, c);
          sums[r] += lanes * (kPaired ? in_halves(scales[r], scales[kByteRows + r]) : Floats{} + scales[r]);
        }
      };
      (add(std::integral_constant<int, kRow>{}), ...);
    };
    if constexpr (kCount == 1) {
      const Registers digits[1] = {Registers(vector[0])};
      with(digits);
    } else {
      const Registers digits[2] = {Registers(vector[0]), Registers(vector[1])};
      with(digits);
    }
  }
#if defined(JAXMEM_AVX512)
  if constexpr (kInTurns<Sums>) {
    ((totals[kRow] = (Floats)_mm512_maskz_mov_ps(kRow % 2 ? 0xAAAA : 0x5555, (__m512)sums[kRow / 2 * 2])), ...);
    return;
  }
#endif
  ((totals[kRow] = sums[kRow]), ...);
}

// Calls run(rows, scales, totals, numbers of some rows as constants) for all of 8 rows. Rows whose codes
// begin at the same bits of a byte are the same code of a processor.
template <int kBits, bool kRounds, int kFirst = 0, typename Rows, typename Run>
JAXMEM_INLINE void eight_rows(const Rows& rows, const float* scales, Floats* totals, const Run& run) {
  using std::integral_constant;
  constexpr int kCount = rows_at_once<kRounds>(kBits), kPeriod = std::max(kCount, Rows::kRowsOfByte);
  for (int first = 0; first < kByteRows; first += kPeriod) {
    const auto some = [&](auto... row) __attribute__((always_inline)) {
      run(rows.from(first), scales + first, totals + first, row...);
    };
    const auto numbered = [&](auto... next) __attribute__((always_inline)) {
      some(integral_constant<int, kFirst + decltype(next)::value>{}...);
    };
    using One = integral_constant<int, 1>;
    if constexpr (kCount == 1) some(integral_constant<int, kFirst>{});
    else if constexpr (kCount == 2) numbered(integral_constant<int, 0>{}, One{});
    else numbered(integral_constant<int, 0>{}, One{}, integral_constant<int, 2>{}, integral_constant<int, 3>{});
  }
  if constexpr (kFirst + kCount < kPeriod) eight_rows<kBits, kRounds, kFirst + kCount>(rows, scales, totals, run);
}

// Calls run(product), where product(rows, scales, totals, numbers of some rows as constants) is the
// `rows_product` that is fastest for such groups.
template <typename X, typename Run>
inline void with_rows_product(int64_t k, int64_t group, const std::vector<Chunk>& chunks, const X& x,
                              const Run& run) {
  const int64_t groups = k % group ? 0 : k / group;  // whole ones
  const auto with_groups = [&](auto vectors) {
    run([&](const auto& rows, const float* scales, Floats* totals, auto... row) __attribute__((always_inline)) {
      whole_groups_product<decltype(vectors)::value, decltype(row)::value...>(rows, scales, groups, x, totals);
    });
  };
  if (groups > 0 && group == kLanes) return with_groups(std::integral_constant<int, 1>{});
  if constexpr (kPairs) {
    if (groups > 0 && groups % 2 == 0 && are_paired(group)) return with_groups(std::integral_constant<int, 0>{});
  }
  if constexpr (kMostGroupVectors<typename X::Sums> >= 2) {
    if (groups > 0 && group == 2 * kLanes) return with_groups(std::integral_constant<int, 2>{});
  }
  run([&](const auto& rows, const float* scales, Floats* totals, auto... row) __attribute__((always_inline)) {
    if constexpr (kPairs) {
      if (are_paired(group)) return rows_product<true, decltype(row)::value...>(rows, scales, chunks, x, totals);
    }
    rows_product<false, decltype(row)::value...>(rows, scales, chunks, x, totals);
  });
}

}  // namespace jaxmem
