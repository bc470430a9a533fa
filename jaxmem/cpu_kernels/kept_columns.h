// Codes of which 2 of every 4 neighbouring columns are kept, spread to all columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "digit_sums.h"
#include "packing.h"

namespace jaxmem {

// The codes of 8 rows, all of whose columns are stored.
template <int kBits>
struct AllColumns {
  const uint8_t* fields[3];  // where the bytes of the 8 rows begin
  int64_t k;

  template <int kRow, bool kWhole>
  Bytes codes(int64_t column, int count) const {
    return unpack<kBits, kRow, kWhole>(fields, k, column, count);
  }
};

// For the number of a pattern of 2 of 4 places (see codecs/nm.py), which of the 2 kept codes stands at
// each place; 128 where none does.
constexpr uint8_t kPlaces[8][4] = {{0, 1, 128, 128}, {0, 128, 1, 128}, {128, 0, 1, 128},
                                   {0, 128, 128, 1}, {128, 0, 128, 1}, {128, 128, 0, 1}};

// Whether codes of so many bits are multiplied where only 2 of every 4 columns are kept.
constexpr bool has_kept_columns(int bits) { return bits == 4 || bits == 8; }

// The codes of 8 rows that keep 2 of every 4 columns; a group begins at a multiple of 4. The code that means 0 stands at other columns.
template <int kBits>
struct KeptColumns {
  const uint8_t* fields[3];    // of the kept codes, (·, k / 2)
  const uint8_t* patterns[2];  // the fields of their patterns' numbers, of 3 bits, (·, k / 4)
  int64_t k;

  template <int kRow, bool kWhole>
  Bytes codes(int64_t column, int) const {
    // What is beyond the row's end is not read; what is beyond a chunk's end is multiplied by 0.
    const int kept = static_cast<int>(std::min<int64_t>(kLanes, (k - column) / 2));
    const int groups = static_cast<int>(std::min<int64_t>(kWords, (k - column) / 4));
    const Bytes codes = unpack<kBits, kRow, false>(fields, k / 2, column / 2, kept);
    return spread(codes, numbers<kRow>(column / 4, groups));
  }

 private:
  typedef uint8_t Numbers __attribute__((vector_size(kWords)));

  template <int kRow>
  Numbers numbers(int64_t column, int count) const {
    const auto part = [&](int f, auto shift, uint8_t mask, int left) {
      const uint8_t* from = patterns[f] + kRow * field(3, f).width / 8 * (k / 4) + column;
      Numbers bytes = {};
      if (count == kWords) bytes = load<Numbers>(from);
      else std::memcpy(&bytes, from, count);
      return (bytes >> decltype(shift)::value & mask) << left;
    };
    constexpr Field kLow = field(3, 0), kHigh = field(3, 1);
    return part(0, std::integral_constant<int, kRow * kLow.width % 8>{}, (1 << kLow.width) - 1, kLow.shift) |
           part(1, std::integral_constant<int, kRow * kHigh.width % 8>{}, (1 << kHigh.width) - 1, kHigh.shift);
  }

  // The codes of kWords groups; `kept` has their kept codes in its first half.
  static Bytes spread(Bytes kept, Numbers numbers) {
    constexpr uint8_t kMiddle = middle_code(kBits);
#if defined(__AVX2__)
    constexpr int kSecond = 0x02020202;  // bytes of the second of the four groups of 16 columns
    constexpr int kFirst[16] = {0, kSecond, 2 * kSecond, 3 * kSecond, 0, kSecond, 2 * kSecond, 3 * kSecond,
                                0, kSecond, 2 * kSecond, 3 * kSecond, 0, kSecond, 2 * kSecond, 3 * kSecond};
    const Ints first = load<Ints>(kFirst);
    kept ^= kMiddle;  // so that 0 stands where none is kept
#if defined(JAXMEM_AVX512)
    const __m512i table = _mm512_castsi256_si512(load<__m256i>(kPlaces));
    const __m512i wide = _mm512_cvtepu8_epi32((__m128i)numbers);
    const Ints places = (Ints)_mm512_permutexvar_epi32(wide, table) + first;
    const __m512i halves = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    const __m512i eights = _mm512_permutexvar_epi64(halves, (__m512i)kept);
    return (Bytes)_mm512_shuffle_epi8(eights, (__m512i)places) ^ kMiddle;
#else
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)&numbers));
    const Ints places = (Ints)_mm256_permutevar8x32_epi32(load<__m256i>(kPlaces), wide) + first;
    const __m256i eights = _mm256_permute4x64_epi64((__m256i)kept, 0x50);
    return (Bytes)_mm256_shuffle_epi8(eights, (__m256i)places) ^ kMiddle;
#endif
#else
    Bytes codes;
    for (int i = 0; i < kLanes; ++i) {
      const uint8_t place = kPlaces[numbers[i / 4] & 7][i % 4];
      codes[i] = place < 2 ? kept[i / 4 * 2 + place] : kMiddle;
    }
    return codes;
#endif
  }
};

}  // namespace jaxmem
