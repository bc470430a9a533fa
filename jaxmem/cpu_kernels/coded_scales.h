// Scales and offsets of rows as integers times float16 units, as solvers/k_quant.py stores them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "packing.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

// Columns of 8 rows of 16 bytes, the first row in the lowest byte.
inline void transpose_eight(const uint8_t (*rows)[kLanes], int from, uint64_t* columns) {
#if defined(__AVX2__)
  __m128i a[kByteRows], b[kByteRows];
  for (int r = 0; r < kByteRows; ++r) a[r] = load<__m128i>(rows[r] + from);
  for (int r = 0; r < 4; ++r) {  // pairs of rows, of columns 0 to 7, then of 8 to 15
    b[r] = _mm_unpacklo_epi8(a[2 * r], a[2 * r + 1]);
    b[r + 4] = _mm_unpackhi_epi8(a[2 * r], a[2 * r + 1]);
  }
  for (int half = 0; half < 2; ++half) {
    const __m128i* pairs = b + 4 * half;
    const __m128i fours[4] = {_mm_unpacklo_epi16(pairs[0], pairs[1]), _mm_unpacklo_epi16(pairs[2], pairs[3]),
                              _mm_unpackhi_epi16(pairs[0], pairs[1]), _mm_unpackhi_epi16(pairs[2], pairs[3])};
    uint64_t* to = columns + from + 8 * half;
    for (int i = 0; i < 4; i += 2) {
      store(to + 2 * i, _mm_unpacklo_epi32(fours[i], fours[i + 1]));
      store(to + 2 * i + 2, _mm_unpackhi_epi32(fours[i], fours[i + 1]));
    }
  }
#else
  for (int c = from; c < from + 16; ++c) {
    columns[c] = 0;
    for (int r = 0; r < kByteRows; ++r) columns[c] |= static_cast<uint64_t>(rows[r][c]) << 8 * r;
  }
#endif
}

// Numbers (n, groups), unit · (code − middle).
struct CodedNumbers {
  int bits = 0;              // 4, 6 or 8; 0 if there are none
  int middle = 0;            // the code that means 0; codes of 8 bits are signed
  int64_t per = 1;           // groups that share a unit
  const uint8_t* units = nullptr;  // (⌈groups / per⌉, n) float16
  const uint8_t* fields[2] = {};   // of the codes, each (n · width/8, groups)

  // Sets `to` (groups) to the numbers of 8 rows from `row` on, all of which are there. `bytes` is
  // memory for their codes.
  void read(int64_t n, int64_t groups, int64_t row, std::vector<uint8_t>* bytes, EightFloats* to) const {
    if (groups == 0) return;
    if (bits == 4) return read_codes<4>(n, groups, row, bytes, to);
    if (bits == 6) return read_codes<6>(n, groups, row, bytes, to);
    read_codes<8>(n, groups, row, bytes, to);
  }

 private:
  template <int kBits>
  void read_codes(int64_t n, int64_t groups, int64_t row, std::vector<uint8_t>* bytes, EightFloats* to) const {
    using Code = std::conditional_t<kBits == 8, int8_t, uint8_t>;
    const uint8_t* copies[2] = {};
    bytes->resize(kBits * groups + kLanes);  // a vector may be read at the last code
    uint8_t* copy = bytes->data();
    for (int f = 0; f < field_count(kBits); ++f) {
      const int64_t size = field(kBits, f).width * groups;
      std::memcpy(copy, fields[f] + row / kByteRows * size, size);
      copies[f] = copy;
      copy += size;
    }
    const uint8_t* unit_bytes = units + row * 2;
    EightFloats unit = {};
    int64_t left = 0;  // groups that have this unit
    for (int64_t g = 0; g < groups; g += kLanes) {
      uint8_t rows[kByteRows][kLanes];
      unpack_rows<kBits>(copies, groups, g, rows, std::make_integer_sequence<int, kByteRows>{});
      uint64_t columns[kLanes];
      for (int from = 0; from < kLanes; from += 16) transpose_eight(rows, from, columns);
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, groups - g); ++i) {
        if (left-- == 0) {
          unit = from_halves<EightFloats>(unit_bytes);
          unit_bytes += n * 2;
          left = per - 1;
        }
        to[g + i] = (from_bytes<Code>(columns[i]) - static_cast<float>(middle)) * unit;
      }
    }
  }

  template <int kBits, int... kRow>
  static void unpack_rows(const uint8_t* const* from, int64_t groups, int64_t g, uint8_t (*rows)[kLanes],
                          std::integer_sequence<int, kRow...>) {
    (store(rows[kRow], unpack<kBits, kRow, true>(from, groups, g, kLanes)), ...);
  }
};

}  // namespace jaxmem
