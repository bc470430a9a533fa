// Scales (groups, n) of the rows of a weight, read in vectors of 8 rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace jaxmem {

constexpr int kByteRows = 8;     // rows that begin at a whole byte of every field of packed codes
constexpr int kBlockRows = 128;  // rows whose scales are read together
constexpr int kBlockVectors = kBlockRows / kByteRows;

// 8 scales, of f32 or of float16 as its bits.
template <typename Number>
JAXMEM_INLINE EightFloats eight_of(const Number* from) {
  if constexpr (sizeof(Number) == 4) return load<EightFloats>(from);
  else return from_halves<EightFloats>(from);
}

// What all weights with scales have.
struct ScaledMatrix {
  int64_t n, k, group;  // rows, columns, and columns that share a scale
  const void* scale;    // (groups, n), f32 or the bits of float16
  bool half_scale;

  int64_t groups() const { return k ? (k + group - 1) / group : 0; }

  // Fetches those of kBlockRows rows from `row` on in group g of numbers (groups, n) of the scales' type.
  JAXMEM_INLINE void fetch_block(const void* numbers, int64_t g, int64_t row) const {
    const int64_t size = half_scale ? 2 : 4;
    fetch(static_cast<const uint8_t*>(numbers) + (g * n + row) * size, kBlockRows * size);
  }

  // Those of 8 rows from `row` on in group g; 0 for rows after the last one.
  EightFloats scales_of(int64_t g, int64_t row) const {
    const int64_t place = g * n + row;
    return half_scale ? at_most_eight<uint16_t>(place, n - row) : at_most_eight<float>(place, n - row);
  }

 private:
  template <typename Number>
  EightFloats at_most_eight(int64_t place, int64_t count) const {
    const Number* from = static_cast<const Number*>(scale) + place;
    Number few[kByteRows] = {};
    if (count < kByteRows) from = static_cast<Number*>(std::memcpy(few, from, count * sizeof *from));
    return eight_of(from);
  }
};

}  // namespace jaxmem
