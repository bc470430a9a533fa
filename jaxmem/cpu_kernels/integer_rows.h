// y = Σ_g scale_g · Σ_(k in g) (code_k − zero_g) · x_k for rows of packed integer codes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "columns.h"
#include "packing.h"
#include "simd.h"

namespace jaxmem {

// The rows of a weight, as codecs/integer.py stores them.
struct IntegerRows {
  int bits;                  // 2 to 8; codes of 8 bits are signed
  int64_t n, k, group;       // rows, columns, and columns that share a scale
  const uint8_t* fields[3];  // each (n · width/8, k)
  const void* scale;         // (groups, n), f32 or the bits of float16
  bool half_scale;
  const uint8_t* zeros[3];   // each (groups, n · width/8), or null: the middle of the codes' range
  int64_t groups() const { return k ? (k + group - 1) / group : 0; }
};

// Whether codes are multiplied in 16 bits: two products of 7 bits and a digit nearly fill 16 bits.
constexpr bool is_wide(int bits) { return bits >= 7; }

// Columns of a chunk: so few that no sum of products overflows 16 bits, or 32 for wide codes.
constexpr int most_columns(int bits) {
  return is_wide(bits) ? 4096 : 32767 / (2 * 127 * ((1 << bits) - 1)) * kLanes;
}

constexpr int kBlockRows = 128;  // rows whose scales are read together
constexpr int kByteRows = 8;     // rows that begin at a whole byte of every field
constexpr int kBlockVectors = kBlockRows / kByteRows;

// What is computed of a block of rows, in vectors of 8 rows.
struct Block {
  std::vector<Floats> scales;  // (kBlockVectors, groups)
  std::vector<Floats> y;       // (m, kBlockVectors)
};

// x (m, k) as a product with a weight of kBits bits reads it.
template <int kBits>
struct Inputs {
  using Row = FixedPoint<std::conditional_t<is_wide(kBits), Halves, Digits>>;
  std::vector<Chunk> chunks;
  std::vector<Row> rows;

  Inputs(const float* x, int64_t m, const IntegerRows& weight)
      : chunks(chunks_of(weight.k, weight.group, most_columns(kBits))) {
    for (int64_t i = 0; i < m; ++i) rows.emplace_back(x + i * weight.k, weight.k, weight.groups(), chunks);
  }
};

// The bytes of 8 packed codes of a group, the first in the lowest byte; `rows` of them are there.
template <int kBits, bool kWhole, int kField = 0>
inline uint64_t unpack_eight(const uint8_t* const* fields, int64_t g, int64_t n, int64_t row,
                             int rows) {
  if constexpr (kField == field_count(kBits)) {
    return 0;
  } else {
    constexpr Field kLayout = field(kBits, kField);
    constexpr int kWidth = kLayout.width;
    const uint8_t* from = fields[kField] + g * packed_size(n, kWidth) + row * kWidth / 8;
    uint64_t packed = 0;
    if constexpr (kWhole) {
      std::memcpy(&packed, from, kWidth);
    } else {
      std::memcpy(&packed, from, packed_size(rows, kWidth));
    }
    return spread<kWidth>(packed) << kLayout.shift |
           unpack_eight<kBits, kWhole, kField + 1>(fields, g, n, row, rows);
  }
}

// For 8 rows from `row`, of which `few` are there: their scales in group g, and minus what their
// zero points are times the scales. Both are 0 for the rows after the last one.
template <int kBits, bool kWhole>
inline void read_group(const IntegerRows& weight, int64_t g, int64_t row, int few, Floats* scale,
                       Floats* offset) {
  const int rows = kWhole ? kByteRows : few;
  const int64_t place = g * weight.n + row;
  if (weight.half_scale) {
    uint16_t halves[kByteRows] = {};
    std::memcpy(halves, static_cast<const uint16_t*>(weight.scale) + place, rows * sizeof *halves);
    *scale = from_halves(halves);
  } else {
    float numbers[kByteRows] = {};
    std::memcpy(numbers, static_cast<const float*>(weight.scale) + place, rows * sizeof *numbers);
    *scale = load<Floats>(numbers);
  }
  Floats zero = Floats{} + (kBits == 8 ? 0.0f : 1 << (kBits - 1));
  if (weight.zeros[0]) {
    const uint64_t codes = unpack_eight<kBits, kWhole>(weight.zeros, g, weight.n, row, rows);
    zero = kBits == 8 ? from_bytes<int8_t>(codes) : from_bytes<uint8_t>(codes);
  }
  *offset = -*scale * zero;
}

// Reads the groups of rows [row, row + rows) of the weight, at most kBlockRows.
template <int kBits>
void read_groups(const IntegerRows& weight, const Inputs<kBits>& inputs, int64_t row, int rows,
                 Block* block) {
  const int64_t groups = weight.groups(), m = inputs.rows.size();
  block->y.assign(m * kBlockVectors, Floats{});
  for (int64_t g = 0; g < groups; ++g) {
    for (int v = 0; v * kByteRows < rows; ++v) {
      Floats offset;
      Floats* scale = &block->scales[v * groups + g];
      const int64_t first = row + v * kByteRows;
      const int few = rows - v * kByteRows;
      if (few >= kByteRows) {
        read_group<kBits, true>(weight, g, first, few, scale, &offset);
      } else {
        read_group<kBits, false>(weight, g, first, few, scale, &offset);
      }
      for (int64_t i = 0; i < m; ++i) {
        block->y[i * kBlockVectors + v] += offset * inputs.rows[i].group_sums[g];
      }
    }
  }
}

// Σ scale · code · x of two rows of 8 rows, as lanes to be added. `fields` is where the bytes of the
// 8 rows begin, `scales` are those of the 8 rows in each group.
template <int kBits, int kFirst, int kSecond, typename Row>
inline void pair_product(const uint8_t* const* fields, int64_t k, const Floats* scales,
                         const std::vector<Chunk>& chunks, const Row& x, Floats* sums) {
  using Sums = std::conditional_t<is_wide(kBits), SignedSums, CodeSums>;
  Floats first_sum = {}, second_sum = {};
  for (const Chunk& chunk : chunks) {
    Sums first, second;
    const auto* vector = x.vectors.data() + chunk.vector;
    int i = 0;
    for (; i + kLanes <= chunk.count; i += kLanes, ++vector) {
      first.add_products(unpack<kBits, kFirst, true>(fields, k, chunk.column + i, kLanes), *vector);
      second.add_products(unpack<kBits, kSecond, true>(fields, k, chunk.column + i, kLanes), *vector);
    }
    if (i < chunk.count) {
      const int few = chunk.count - i;
      first.add_products(unpack<kBits, kFirst, false>(fields, k, chunk.column + i, few), *vector);
      second.add_products(unpack<kBits, kSecond, false>(fields, k, chunk.column + i, few), *vector);
    }
    const Floats& scale = scales[chunk.group];
    first_sum += first.lanes() * scale[kFirst];
    second_sum += second.lanes() * scale[kSecond];
  }
  sums[kFirst] = first_sum;
  sums[kSecond] = second_sum;
}

// `pair_product` of the first `rows` of 8 rows, two at a time.
template <int kBits, int kFirst = 0, typename Row>
inline void add_pairs(const uint8_t* const* fields, int64_t k, const Floats* scales,
                      const std::vector<Chunk>& chunks, const Row& x, int rows, Floats* sums) {
  if constexpr (kFirst < kByteRows) {
    if (rows <= kFirst) return;
    if (kBits == 8 && rows == kFirst + 1) {  // the next row's byte is not there
      pair_product<kBits, kFirst, kFirst>(fields, k, scales, chunks, x, sums);
    } else {
      pair_product<kBits, kFirst, kFirst + 1>(fields, k, scales, chunks, x, sums);
    }
    add_pairs<kBits, kFirst + 2>(fields, k, scales, chunks, x, rows, sums);
  }
}

// y (m, n) in rows [first, last) of the weight; kBlockRows divides `first`.
template <int kBits>
void integer_product(const IntegerRows& weight, const Inputs<kBits>& inputs, int64_t first,
                     int64_t last, float* y) {
  const int64_t n = weight.n, k = weight.k, groups = weight.groups(), m = inputs.rows.size();
  Block block;
  block.scales.resize(groups * kBlockVectors);
  for (int64_t row = first; row < last; row += kByteRows) {
    const int v = (row - first) / kByteRows % kBlockVectors;
    const int rows = static_cast<int>(std::min<int64_t>(kByteRows, last - row));
    if (v == 0) {
      read_groups(weight, inputs, row, static_cast<int>(std::min<int64_t>(kBlockRows, last - row)),
                  &block);
    }
    const uint8_t* fields[3] = {};
    for (int f = 0; f < field_count(kBits); ++f) {
      fields[f] = weight.fields[f] + row * field(kBits, f).width / 8 * k;
    }
    const Floats* scales = block.scales.data() + v * groups;
    for (int64_t i = 0; i < m; ++i) {
      const auto& x = inputs.rows[i];
      Floats sums[kByteRows] = {};
      add_pairs<kBits>(fields, k, scales, inputs.chunks, x, rows, sums);
      for (int j = 0; j < rows; ++j) {
        y[i * n + row + j] = x.step * (block.y[i * kBlockVectors + v][j] + sum_of_lanes(sums[j]));
      }
    }
  }
}

// Calls run(std::integral_constant<int, bits>) for bits from 2 to 8.
template <typename Run>
void with_bits(int bits, const Run& run) {
  switch (bits) {
    case 2: return run(std::integral_constant<int, 2>{});
    case 3: return run(std::integral_constant<int, 3>{});
    case 4: return run(std::integral_constant<int, 4>{});
    case 5: return run(std::integral_constant<int, 5>{});
    case 6: return run(std::integral_constant<int, 6>{});
    case 7: return run(std::integral_constant<int, 7>{});
    default: return run(std::integral_constant<int, 8>{});
  }
}

}  // namespace jaxmem
