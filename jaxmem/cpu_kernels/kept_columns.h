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
  static constexpr int kRowsOfByte = kBits & 1 ? 8 : kBits & 2 ? 4 : kBits & 4 ? 2 : 1;  // of the narrowest field
  const uint8_t* fields[3];  // where the bytes of the 8 rows begin
  int64_t k;

  // The same of rows from `row` on, which begin at a byte of each field.
  AllColumns from(int row) const {
    AllColumns moved = *this;
    for (int f = 0; f < field_count(kBits); ++f) moved.fields[f] += row * field(kBits, f).width / 8 * k;
    return moved;
  }

  template <int kRow, bool kWhole>
  JAXMEM_INLINE auto codes(int64_t column, int count) const {
    if constexpr (kBits == 8 && kWhole) {
      const uint8_t* from = fields[0] + kRow * k + column;
      fetch_ahead(from, 8);
      return StoredBytes{from};
    } else return unpack<kBits, kRow, kWhole>(fields, k, column, count);
  }
};

// For the number of a pattern of 2 of 4 places (see codecs/nm.py), which of the 2 kept codes stands at
// each place; 128 where none does.
constexpr uint8_t kPlaces[8][4] = {{0, 1, 128, 128}, {0, 128, 1, 128}, {128, 0, 1, 128},
                                   {0, 128, 128, 1}, {128, 0, 128, 1}, {128, 128, 0, 1}};

// Whether codes of so many bits are multiplied where only 2 of every 4 columns are kept.
constexpr bool has_kept_columns(int bits) { return bits == 4 || bits == 8; }

// The codes of 8 rows that keep 2 of every 4 columns; the code that means 0 stands at the others. A group
// begins at a multiple of 4.
template <int kBits>
struct KeptColumns {
  static constexpr int kRowsOfByte = 8;
  const uint8_t* fields[3];    // of the kept codes, (·, k / 2)
  const uint8_t* patterns[2];  // the fields of their patterns' numbers, of 3 bits, (·, k / 4)
  int64_t k;

  const KeptColumns& from(int) const { return *this; }

  template <int kRow, bool kWhole>
  JAXMEM_INLINE Bytes codes(int64_t column, int) const {
    constexpr int kPlace = kRow * kBits % 8;
    const uint8_t* from = fields[0] + kRow * kBits / 8 * half_of(k) + half_of(column);
    if constexpr (kPlace == 0) fetch_ahead(from, kBits);
    // What is beyond the row's end is not read; what is beyond a chunk's end is multiplied by 0.
    Kept kept = {};
    if (kWhole) kept = load<Kept>(from);
    else std::memcpy(&kept, from, std::min<int64_t>(kLanes / 2, half_of(k - column)));
    if constexpr (kBits == 4) kept = (Kept)((KeptShorts)kept >> kPlace) & 15;
    return spread(kept ^ kMiddle, numbers<kRow, kWhole>(column));
  }

 private:
  static constexpr uint8_t kMiddle = middle_code(kBits);
  typedef uint8_t Kept __attribute__((vector_size(kLanes / 2)));
  typedef uint16_t KeptShorts __attribute__((vector_size(kLanes / 2)));

  // The numbers of the patterns of kWords groups, a byte each; 8 of them are one number of a CPU, whose
  // shifts leave vector units free.
  typedef uint32_t Words __attribute__((vector_size(kWords)));
  using Numbers = std::conditional_t<kWords == 8, uint64_t, Words>;
  using Word = std::conditional_t<kWords == 8, uint64_t, uint32_t>;

  static int64_t half_of(int64_t columns) { return columns >> 1; }

  template <int kRow, bool kWhole>
  JAXMEM_INLINE Numbers numbers(int64_t column) const {
    return part<0, kRow, kWhole>(column) | part<1, kRow, kWhole>(column);
  }

  // Field kField of the numbers.
  template <int kField, int kRow, bool kWhole>
  JAXMEM_INLINE Numbers part(int64_t column) const {
    constexpr Field kLayout = field(3, kField);
    constexpr Word kMask = static_cast<Word>(0x0101010101010101u) * ((1 << kLayout.width) - 1);
    const uint8_t* from = patterns[kField] + kRow * kLayout.width / 8 * (k >> 2) + (column >> 2);
    Numbers words = {};
    if (kWhole) words = load<Numbers>(from);
    else std::memcpy(&words, from, std::min<int64_t>(kWords, (k - column) >> 2));
    return (words >> kRow * kLayout.width % 8 & kMask) << kLayout.shift;
  }

  // The codes of kWords groups, of the kept ones, of which the code that means 0 is 0 here.
  static JAXMEM_INLINE Bytes spread(Kept kept, Numbers numbers) {
#if defined(__AVX2__)
    constexpr int kSecond = 0x02020202;  // bytes of the second of the four groups of 16 columns
    constexpr int kFirst[16] = {0, kSecond, 2 * kSecond, 3 * kSecond, 0, kSecond, 2 * kSecond, 3 * kSecond,
                                0, kSecond, 2 * kSecond, 3 * kSecond, 0, kSecond, 2 * kSecond, 3 * kSecond};
    const Ints first = load<Ints>(kFirst);
#if defined(JAXMEM_AVX512)
    const __m512i table = _mm512_castsi256_si512(load<__m256i>(kPlaces));
    const __m512i wide = _mm512_cvtepu8_epi32((__m128i)numbers);
    const Ints places = (Ints)_mm512_permutexvar_epi32(wide, table) + first;
    const __m512i halves = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    const __m512i eights = _mm512_permutexvar_epi64(halves, _mm512_castsi256_si512((__m256i)kept));
    return (Bytes)_mm512_shuffle_epi8(eights, (__m512i)places) ^ kMiddle;
#else
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(numbers));
    const Ints places = (Ints)_mm256_permutevar8x32_epi32(load<__m256i>(kPlaces), wide) + first;
    const __m256i eights = _mm256_permute4x64_epi64(_mm256_castsi128_si256((__m128i)kept), 0x50);
    return (Bytes)_mm256_shuffle_epi8(eights, (__m256i)places) ^ kMiddle;
#endif
#else
    Bytes codes;
    for (int i = 0; i < kLanes; ++i) {
      const uint8_t place = kPlaces[reinterpret_cast<const uint8_t*>(&numbers)[i / 4] & 7][i % 4];
      codes[i] = (place < 2 ? kept[i / 4 * 2 + place] : 0) ^ kMiddle;
    }
    return codes;
#endif
  }
};

}  // namespace jaxmem
