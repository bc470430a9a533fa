// Rows of codes as products with panels of x read them: in words, which one instruction multiplies.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "columns.h"
#include "kept_columns.h"
#include "packing.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

#if defined(JAXMEM_DOT_PRODUCT) && defined(__AVX2__)
constexpr int kXOffset = 128;  // what numbers of x are stored with: the instruction takes no sign of theirs
#else
constexpr int kXOffset = 0;
#endif

// Whether three digits of x multiplied so are faster than f32.
#if defined(JAXMEM_DOT_PRODUCT)
constexpr bool kDigitPanels = true;
typedef int8_t Wide;  // a number of a word
#else
constexpr bool kDigitPanels = false;
typedef int16_t Wide;
#endif

constexpr int kWordColumns = 4 / sizeof(Wide), kVectorWords = kLanes / kWordColumns;  // of kLanes columns
#if defined(JAXMEM_AVX512) || defined(__ARM_NEON)  // 32 registers
constexpr int kPanelVectors = 3, kTileRows = 8;
#else
constexpr int kPanelVectors = 2, kTileRows = 4;
#endif

// sum + Σ x · codes of each word; all words of `codes` are one.
JAXMEM_INLINE Ints add_words(Ints sum, Ints x, Ints codes) {
#if defined(JAXMEM_AVX512)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)codes);
#elif defined(__AVX2__) && defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)codes);
#elif defined(__AVX2__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)codes);
#elif defined(__ARM_FEATURE_DOTPROD)
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)codes);
#else
  const Ints low_x = (x << 16) >> 16, low_codes = (codes << 16) >> 16;
  return sum + low_x * low_codes + (x >> 16) * (codes >> 16);
#endif
}

// Whether m rows of x, of k columns in digits, are multiplied faster in panels; else each is by itself, which
// adds up the lanes of a vector in the time of some hundred columns. All rows are multiplied in one way, so
// that what a row gives does not depend on its place.
inline bool are_in_panels(int64_t m, int64_t k) {
  constexpr int64_t kColumns = 427;
  return kDigitPanels && 2 * m >= kWords && m * (k + kColumns) > (m + kWords - 1) / kWords * kWords * k;
}

// Columns that are summed in integers before they meet a scale.
struct Piece {
  int64_t word;  // where they begin
  int words;
  int64_t group;
};

inline std::vector<Piece> pieces_of(const std::vector<Chunk>& chunks, int64_t group) {
  std::vector<Piece> pieces;
  for (const Chunk& chunk : chunks) {
    const int64_t word = chunk.vector * kVectorWords;
    const int words = vectors_of(chunk.count) * kVectorWords;
    if (are_paired(group) && chunk.count > group) {
      pieces.push_back({word, words / 2, chunk.group});
      pieces.push_back({word + words / 2, words / 2, chunk.group + 1});
    } else {
      pieces.push_back({word, words, chunk.group});
    }
  }
  return pieces;
}

// Codes of 8 rows in words, and their sums over each piece.
struct CodePanel {
  const uint8_t* words;   // those of a row are `row_bytes` after those of the last one
  int64_t row_bytes = 0;
  std::vector<std::array<int32_t, kByteRows>> sums;  // of each piece

  // Reads codes, which count less `middle` if they have no sign.
  template <int kBits, typename Rows>
  void read(const Rows& rows, const std::vector<Chunk>& chunks, const std::vector<Piece>& pieces, int middle) {
    row_bytes = pieces.empty() ? 0 : 4 * (pieces.back().word + pieces.back().words);
    if (are_words<kBits, Rows>(rows)) {
      words = rows.fields[0];
      for (int64_t i = 0; i < kByteRows * row_bytes; i += 64) fetch_ahead(words + i, 8);
    } else {
      unpacked_.resize(kByteRows * row_bytes);
      words = unpacked_.data();
      read_rows<kBits>(rows, chunks, kBits == 8 ? 0 : middle);
    }
    const Ints ones = Ints{} + (sizeof(Wide) == 1 ? 0x01010101 : 0x00010001);
    sums.resize(pieces.size());
    for (size_t p = 0; p < pieces.size(); ++p) {
      Floats totals[kByteRows];
      for (int row = 0; row < kByteRows; ++row) {
        Ints sum = {};
        for (int w = 0; w < pieces[p].words; w += kWords) {
          const uint8_t* from = words + row * row_bytes + 4 * (pieces[p].word + w);
          const int few = std::min(kWords, pieces[p].words - w);
          sum = add_words(sum, ones, (Ints)load_floats(reinterpret_cast<const float*>(from), few));
        }
        totals[row] = __builtin_convertvector(sum, Floats);
      }
      const EightFloats of_rows = sums_of_lanes(totals);
      for (int row = 0; row < kByteRows; ++row) sums[p][row] = static_cast<int32_t>(of_rows[row]);
    }
  }

 private:
  std::vector<uint8_t> unpacked_;

  // Whether codes are words as they are stored: signed, and a row has no more words than columns.
  template <int kBits, typename Rows>
  bool are_words(const Rows& rows) const {
    return kBits == 8 && sizeof(Wide) == 1 && std::is_same_v<Rows, AllColumns<8>> && rows.k == row_bytes;
  }

  template <int kBits, int kRow = 0, typename Rows>
  void read_rows(const Rows& rows, const std::vector<Chunk>& chunks, int middle) {
    uint8_t* to = unpacked_.data() + kRow * row_bytes;
    const Bytes less = Bytes{} + static_cast<uint8_t>(middle);
    for (const Chunk& chunk : chunks) {
      for (int i = 0; i < chunk.count; i += kLanes, to += kLanes * sizeof(Wide)) {
        const int64_t column = chunk.column + i;
        const int count = chunk.count - i;
        if (count >= kLanes) store_wide((Bytes)rows.template codes<kRow, true>(column, kLanes) - less, to);
        else store_wide((Bytes)rows.template codes<kRow, false>(column, count) - less, to);
      }
    }
    if constexpr (kRow + 1 < kByteRows) read_rows<kBits, kRow + 1>(rows, chunks, middle);
  }

  static JAXMEM_INLINE void store_wide(Bytes codes, uint8_t* to) {
    typedef int8_t Signed __attribute__((vector_size(kLanes)));
    typedef Wide Some __attribute__((vector_size(sizeof(Wide) * kLanes)));
    store(to, __builtin_convertvector((Signed)codes, Some));
  }
};

}  // namespace jaxmem
