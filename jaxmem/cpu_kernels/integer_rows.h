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
#include "row_products.h"
#include "simd.h"
#include "stored_integers.h"
#include "two_rows.h"

namespace jaxmem {

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
    bool in_panels = false;
    if constexpr (Inputs::kHasPanels) in_panels = !inputs.panels.empty();
    for (int v = 0; v < eights; ++v) {
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
            eight_rows<kBits, Inputs::kRounds>(rows, reinterpret_cast<const float*>(scales), totals, product);
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
  if constexpr (has_kept_columns(kBits) && !Inputs::kRounds) {
    if (weight.patterns[0]) return rows_range_product<kBits, KeptColumns<kBits>>(weight, inputs, first, last, y);
  }
  rows_range_product<kBits, AllColumns<kBits>>(weight, inputs, first, last, y);
}

}  // namespace jaxmem
