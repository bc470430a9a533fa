// y = Σ_g Σ_(k in g) (scale_g · (code_k − zero_g) + low_g) · x_k for rows of packed integer codes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "columns.h"
#include "decoded_rows.h"
#include "kept_columns.h"
#include "packing.h"
#include "rounded_inputs.h"
#include "row_blocks.h"
#include "simd.h"
#include "stored_integers.h"
#include "two_rows.h"

namespace jaxmem {

// Rows that are multiplied together: some that share a byte, so that bytes are read in order.
constexpr int rows_at_once(int bits) {
#if defined(JAXMEM_AVX512)
  if (bits == 3 || bits == 6) return 4;  // those of a byte of the field of 2 bits, which is read once
#endif
  return bits == 8 ? 1 : 2;
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
// codes, and where their scales are among those of a group, which begin at scales[8 · g]; `kPaired` says
// whether a chunk is of two groups.
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
    ((sums[kRow] += products[kRow].lanes() * scale[rows.template scale<kRow>()]), ...);
    if constexpr (kPaired) {
      const float* next = scale + (chunk.count > kLanes / 2 ? kByteRows : 0);
      ((last_sums[kRow] += products[kRow].lanes() * next[rows.template scale<kRow>()]), ...);
    }
  }
  ((totals[kRow] = kPaired ? joined_halves(sums[kRow], last_sums[kRow]) : sums[kRow]), ...);
}

// The most vectors of a group whose sums fit integers before they start at −Σ middle_code · x.
template <typename Sums>
constexpr int kMostGroupVectors = Sums::kFitsInt ? Sums::kMostVectors / 2 : Sums::kMostVectors;

// Σ code · x of a row in kVectors vectors from a column on, in the steps of x.
template <int kVectors, int kRow, typename Rows, typename X>
JAXMEM_INLINE Floats group_lanes(const Rows& rows, int64_t column, const typename X::Sums::Registers* digits,
                                 const X& x, int64_t chunk) {
  using Sums = typename X::Sums;
  if constexpr (Sums::kIsJoined) {
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
  Floats sums[kByteRows] = {};
  const auto* vector = x.vectors.data();
  const int64_t chunks = kPaired ? groups / 2 : groups;
  for (int64_t c = 0; c < chunks; ++c, vector += kCount, scales += kByteRows * (kPaired ? 2 : 1)) {
    // GCC would read digits again for each row.
    using Registers = typename X::Sums::Registers;
    const auto with = [&](const Registers* digits) __attribute__((always_inline)) {
      const auto add = [&](auto row) __attribute__((always_inline)) {
        constexpr int r = decltype(row)::value;
        const Floats lanes = group_lanes<kCount, r>(rows, c * kCount * kLanes, digits, x, c);
        const float* scale = scales + rows.template scale<r>();
        sums[r] += lanes * (kPaired ? in_halves(scale[0], scale[kByteRows]) : Floats{} + scale[0]);
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
  ((totals[kRow] = sums[kRow]), ...);
}

// Calls run(rows, scales, totals, numbers of some rows as constants) for all of 8 rows. Rows whose codes
// begin at the same bits of a byte are the same code of a processor.
template <int kBits, int kFirst = 0, typename Rows, typename Run>
JAXMEM_INLINE void eight_rows(const Rows& rows, const float* scales, Floats* totals, const Run& run) {
  using std::integral_constant;
  constexpr int kCount = rows_at_once(kBits), kPeriod = std::max(kCount, Rows::kRowsOfByte);
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
  if constexpr (kFirst + kCount < kPeriod) eight_rows<kBits, kFirst + kCount>(rows, scales, totals, run);
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

// Products with codes of 8 bits of as many of the block's eights as kFarRows divides; returns how many these
// are. They are read from kFarRows places by turns.
template <typename Inputs, typename Done>
int far_rows_product(const IntegerRows& weight, const Inputs& inputs, const Block& block, int64_t row, int eights,
                     const Done& done) {
  const int64_t groups = weight.groups();
  const int step = eights / kFarRows;
  for (int v = 0; v < step; ++v) {
    const float* scales = reinterpret_cast<const float*>(block.scales.data() + v * groups);
    for (size_t i = 0; i < inputs.rows.size(); ++i) {
      const auto& x = inputs.rows[i];
      Floats totals[kFarRows][kByteRows];
      with_rows_product(weight.k, weight.group, inputs.chunks, x, [&](const auto& product) {
        for (int r = 0; r < kByteRows; ++r) {
          Floats sums[kFarRows];
          const FarRows rows{weight.fields[0] + (row + v * kByteRows + r) * weight.k, step * kByteRows * weight.k,
                             step * kByteRows * groups};
          product(rows, scales + r, sums, std::integral_constant<int, 0>{}, std::integral_constant<int, 1>{},
                  std::integral_constant<int, 2>{}, std::integral_constant<int, 3>{});
          for (int f = 0; f < kFarRows; ++f) totals[f][r] = sums[f];
        }
      });
      for (int f = 0; f < kFarRows; ++f) {
        const int at = v + f * step;
        done(i, row + at * kByteRows, (sums_of_lanes(totals[f]) + block.y[i * kBlockVectors + at]) * x.step);
      }
    }
  }
  return step * kFarRows;
}

// Calls done(i, y) for each row i of x in panels, with 8 rows of the weight. Codes count less `middle`.
template <int kBits, typename Inputs, typename Rows, typename Done>
void panels_product(const Rows& rows, const Inputs& inputs, int middle, const EightFloats* scales, CodePanel* codes,
                       const Done& done) {
  constexpr bool kDigits = !std::is_same_v<Inputs, RoundedInputs>;
  codes->read<kBits>(rows, inputs.chunks, inputs.pieces, middle);
  EightFloats y[kPanelVectors * kWords];
  for (const XPanel& panel : inputs.panels) {
    any_panel_product<kDigits>(*codes, inputs.pieces, scales, panel, y);
    for (int i = 0; i < panel.count; ++i) done(panel.first + i, y[i]);
  }
}

// Calls done(i, row, y) for x's row i and the y of 8 rows of the weight from `row`, for rows
// [first, last) of the weight; 8 divides their number and `first`.
template <int kBits, typename Rows, typename Inputs, typename Done>
void whole_rows_product(const IntegerRows& weight, const Inputs& inputs, int64_t first, int64_t last,
                        const Done& done) {
  const int64_t groups = weight.groups(), m = inputs.rows.size();
  Block block;
  CodePanel codes;
  if (m == 0) return;
  block.scales.resize(groups * kBlockVectors);
  for (int64_t begin = first; begin < last; begin += kBlockRows) {
    const int64_t count = std::min<int64_t>(kBlockRows, last - begin);
    block.y.assign(m * kBlockVectors, EightFloats{});
    read_block<kBits>(weight, begin, count, block.scales.data(), [&](int64_t g) {
      return [&, g, sum = inputs.rows[0].group_sums[g]](int64_t v, EightFloats offsets) {
        block.y[v] -= offsets * sum;
        for (int64_t i = 1; i < m; ++i) block.y[i * kBlockVectors + v] -= offsets * inputs.rows[i].group_sums[g];
      };
    });
    const int eights = count / kByteRows;
    int v = 0;
    bool in_panels = false;
    if constexpr (Inputs::kHasPanels) in_panels = !inputs.panels.empty();
    if constexpr (kBits == 8 && std::is_same_v<Rows, AllColumns<8>> && Inputs::kHasRows) {
      if (!in_panels) v = far_rows_product(weight, inputs, block, begin, eights, done);
    }
    for (; v < eights; ++v) {
      const int64_t row = begin + v * kByteRows;
      const Rows rows = rows_at<kBits, Rows>(weight, row);
      const EightFloats* scales = block.scales.data() + v * groups;
      const auto add_offsets = [&](int64_t i, EightFloats sums) {
        done(i, row, (sums + block.y[i * kBlockVectors + v]) * inputs.rows[i].step);
      };
      if constexpr (Inputs::kHasPanels) {
        const int middle = static_cast<int>(subtracted_code<kBits>(weight));
        if (in_panels) panels_product<kBits>(rows, inputs, middle, scales, &codes, add_offsets);
      }
      if constexpr (Inputs::kHasRows) {
        if (in_panels) continue;
        for (int64_t i = 0; i < m; ++i) {
          const auto& x = inputs.rows[i];
          if constexpr (has_two_rows(kBits) && std::is_same_v<Rows, AllColumns<kBits>>) {
            if (are_two_rows<kBits>(weight)) {
              add_offsets(i, two_rows_product(rows.fields[0], groups, scales, x, !weight.has_offsets()));
              continue;
            }
          }
          Floats totals[kByteRows];
          with_rows_product(weight.k, weight.group, inputs.chunks, x, [&](const auto& product) {
            eight_rows<kBits>(rows, reinterpret_cast<const float*>(scales), totals, product);
          });
          add_offsets(i, sums_of_lanes(totals));
        }
      }
    }
  }
}

// Whether m rows of x are multiplied faster with decoded weights: where no digits are multiplied in panels, or
// groups are so short that these spend their time on scales.
inline bool are_decoded(const IntegerRows& weight, int64_t m) {
  const bool one_group = weight.groups() == 1;
  return kDigitPanels ? !one_group && weight.group < 64 && m >= 16 : m >= (one_group ? 32 : 16);
}

// The same where x meets decoded weights.
template <int kBits, typename Rows, typename Done>
void whole_rows_product(const IntegerRows& weight, const InputTiles& inputs, int64_t first, int64_t last,
                        const Done& done) {
  DecodedIntegers<kBits, Rows> decoded(weight);
  decoded_product(decoded, inputs, first, last, done);
}

template <int kBits, typename Rows, typename Inputs>
void rows_range_product(const IntegerRows& weight, const Inputs& inputs, int64_t first, int64_t last, float* y) {
  const int64_t n = weight.n, whole = last / kByteRows * kByteRows;
  whole_rows_product<kBits, Rows>(weight, inputs, first, whole, [&](int64_t i, int64_t row, EightFloats values) {
    store(y + i * n + row, values);
  });
  if (whole == last) return;
  const LastRows rest(weight, whole);
  whole_rows_product<kBits, Rows>(rest.weight, inputs, 0, kByteRows, [&](int64_t i, int64_t, EightFloats values) {
    std::memcpy(y + i * n + whole, &values, (last - whole) * sizeof *y);
  });
}

// y (m, n) in rows [first, last) of the weight; 8 divides `first`.
template <int kBits, typename Inputs>
void integer_product(const IntegerRows& weight, const Inputs& inputs, int64_t first, int64_t last, float* y) {
  if constexpr (has_kept_columns(kBits)) {
    if (weight.patterns[0]) return rows_range_product<kBits, KeptColumns<kBits>>(weight, inputs, first, last, y);
  }
  rows_range_product<kBits, AllColumns<kBits>>(weight, inputs, first, last, y);
}

}  // namespace jaxmem
