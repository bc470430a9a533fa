// Scales and offsets of a block of rows of integer codes, read in vectors of 8 rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "columns.h"
#include "kept_columns.h"
#include "packing.h"
#include "panels.h"
#include "simd.h"
#include "stored_integers.h"
#include "two_rows.h"

namespace jaxmem {

// The codes of 8 rows of a weight from `row` on.
template <int kBits, typename Rows>
Rows rows_at(const IntegerRows& weight, int64_t row) {
  Rows rows{};
  rows.k = weight.k;
  for (int f = 0; f < field_count(kBits); ++f) {
    rows.fields[f] = weight.fields[f] + row * field(kBits, f).width / 8 * weight.kept();
  }
  if constexpr (std::is_same_v<Rows, KeptColumns<kBits>>) {
    for (int f = 0; f < 2; ++f) {
      rows.patterns[f] = weight.patterns[f] + row * field(3, f).width / 8 * (weight.k / 4);
    }
  }
  return rows;
}

// What is computed of a block of rows, in vectors of 8 rows.
struct Block {
  std::vector<EightFloats> scales;  // (kBlockVectors, groups)
  std::vector<EightFloats> y;       // (m, kBlockVectors)
};

// x (m, k) as a product with a weight of kBits bits reads it: in panels, or row by row.
template <int kBits>
struct Inputs {
  static constexpr bool kRounds = false, kHasRows = true, kHasPanels = kDigitPanels;
  static constexpr int kRows = 4 * kWords;  // that a core multiplies with a block of codes

  std::vector<Chunk> chunks;
  std::vector<Piece> pieces;
  std::vector<FixedPoint<kBits>> rows;
  std::vector<XPanel> panels;

  // `each(count, run)` calls run(i) for i from 0 to `count`; x is part of an x of `all` rows.
  template <typename Each>
  Inputs(const float* x, int64_t m, int64_t all, const IntegerRows& weight, const Each& each)
      : chunks(chunks_of(weight.k, weight.group, DigitSums<kBits>::kMostVectors * kLanes)), rows(m) {
    each(m, [&](int64_t i) { rows[i] = FixedPoint<kBits>(x + i * weight.k, weight.k, weight.group, chunks); });
    if constexpr (kDigitPanels) {
      if (!are_in_panels(all, weight.k)) return;
      pieces = pieces_of(chunks, weight.group);
      panels.resize((m + kWords - 1) / kWords);
      each(panels.size(), [&](int64_t p) {
        const int64_t first = p * kWords;
        panels[p] = digit_panel(&rows[first], first, static_cast<int>(std::min<int64_t>(kWords, m - first)));
      });
    }
  }
};

// The bytes of 8 packed codes, the first in the lowest byte: the v-th 8 of each of the fields.
template <int kBits, int kField = 0>
JAXMEM_INLINE uint64_t unpack_eight(const uint8_t* const* fields, int64_t v) {
  if constexpr (kField == field_count(kBits)) {
    return 0;
  } else {
    constexpr Field kLayout = field(kBits, kField);
    constexpr int kWidth = kLayout.width;
    uint64_t packed = 0;
    std::memcpy(&packed, fields[kField] + v * kWidth, kWidth);
    return spread<kWidth>(packed) << kLayout.shift | unpack_eight<kBits, kField + 1>(fields, v);
  }
}

// The code that products are less by: the middle of the codes' range, or 0.
template <int kBits>
inline float subtracted_code(const IntegerRows& weight) {
  return are_two_rows<kBits>(weight) && weight.has_offsets() ? 0 : 1 << (kBits - 1);
}

// The v-th 8 of some zero points, less `middle` if they have no sign.
template <int kBits>
JAXMEM_INLINE EightFloats eight_zeros(const uint8_t* const* fields, int64_t v, float middle) {
  const uint64_t codes = unpack_eight<kBits>(fields, v);
  if constexpr (kBits == 8) return from_bytes<int8_t>(codes);
  return from_bytes<uint8_t>(codes) - middle;
}

// Reads the scales (kBlockVectors, groups) of `rows` rows from `row` on, a multiple of 8 and at most kBlockRows.
// Where codes have offsets, take(g)(v, offsets) is called for the v-th 8 rows, whose products with an x of group
// g are to be less by offsets · x.
template <int kBits, typename Number, typename Take>
void read_groups(const IntegerRows& weight, int64_t row, int64_t rows, EightFloats* scales, const Take& take) {
  const float middle = subtracted_code<kBits>(weight);
  const int64_t groups = weight.groups(), count = rows / kByteRows;
  for (int64_t g = 0; g < groups; ++g) {
    weight.fetch_block(weight.scale, g, row + kBlockRows);
    const Number* scale = static_cast<const Number*>(weight.scale) + g * weight.n + row;
    // Calls offset(v, the scales of 8 rows) for the offsets of these.
    const auto with_offsets = [&](const auto& offset) __attribute__((always_inline)) {
      const auto take_offsets = take(g);
      for (int64_t v = 0; v < count; ++v) {
        const EightFloats eight = eight_of(scale + v * kByteRows);
        scales[v * groups + g] = eight;
        take_offsets(v, offset(v, eight));
      }
    };
    if (weight.low) {
      weight.fetch_block(weight.low, g, row + kBlockRows);
      const Number* low = static_cast<const Number*>(weight.low) + g * weight.n + row;
      with_offsets([&](int64_t v, EightFloats eight) { return -eight * middle - eight_of(low + v * kByteRows); });
    } else if (weight.zeros[0]) {
      const uint8_t* zeros[3] = {};
      for (int f = 0; f < field_count(kBits); ++f) {
        const int width = field(kBits, f).width;
        zeros[f] = weight.zeros[f] + g * packed_size(weight.n, width) + row * width / 8;
        fetch(zeros[f] + kBlockVectors * width, kBlockVectors * width);
      }
      with_offsets([&](int64_t v, EightFloats eight) { return eight * eight_zeros<kBits>(zeros, v, middle); });
    } else {
      for (int64_t v = 0; v < count; ++v) scales[v * groups + g] = eight_of(scale + v * kByteRows);
    }
  }
}

// The same where scales are codes.
template <int kBits, typename Take>
void read_coded_groups(const IntegerRows& weight, int64_t row, int64_t rows, EightFloats* scales, const Take& take) {
  const float middle = subtracted_code<kBits>(weight);
  const int64_t groups = weight.groups();
  std::vector<uint8_t> bytes;
  std::vector<EightFloats> lows(groups);
  for (int v = 0; v * kByteRows < rows; ++v, scales += groups) {
    const int64_t first = row + v * kByteRows;
    weight.scale_codes.read(weight.n, groups, first, &bytes, scales);
    if (!weight.low_codes.bits) continue;
    weight.low_codes.read(weight.n, groups, first, &bytes, lows.data());
    for (int64_t g = 0; g < groups; ++g) take(g)(v, -scales[g] * middle - lows[g]);
  }
}

// `read_groups` of scales of any form.
template <int kBits, typename Take>
void read_block(const IntegerRows& weight, int64_t row, int64_t rows, EightFloats* scales, const Take& take) {
  if (weight.scale_codes.bits) read_coded_groups<kBits>(weight, row, rows, scales, take);
  else if (weight.half_scale) read_groups<kBits, uint16_t>(weight, row, rows, scales, take);
  else read_groups<kBits, float>(weight, row, rows, scales, take);
}

}  // namespace jaxmem
