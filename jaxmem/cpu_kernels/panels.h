// Products of codes with many rows of x. Some rows of codes are unpacked once, and meet the rows of a panel
// of x: its vectors have a word of each of kWords rows, where a word is what one instruction multiplies.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
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

#if defined(JAXMEM_AVX512) || defined(__AVX2__) && defined(__AVXVNNI__)
#define JAXMEM_DOT_PRODUCT 1
constexpr int kXOffset = 128;  // what numbers of x are stored with: the instruction takes no sign of theirs
#elif defined(__ARM_FEATURE_DOTPROD)
#define JAXMEM_DOT_PRODUCT 1
constexpr int kXOffset = 0;
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
      for (int64_t i = 0; i < kByteRows * row_bytes; i += 64) fetch_ahead(words + i);
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

// Calls done(i, column i) for the columns of 8 rows of `count` numbers each, which begin at row(0), ... row(7);
// 8 divides `count` with AVX2.
template <typename Row, typename Done>
JAXMEM_INLINE void for_columns(int64_t count, const Row& row, const Done& done) {
#if defined(__AVX2__)
  for (int64_t i = 0; i < count; i += 8) {
    __m256 rows[8], pairs[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) rows[j] = (__m256)load<EightFloats>(row(j) + i);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
      pairs[j] = _mm256_unpacklo_ps(rows[j], rows[j + 1]);
      pairs[j + 1] = _mm256_unpackhi_ps(rows[j], rows[j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4) {
      rows[j] = _mm256_shuffle_ps(pairs[j], pairs[j + 2], 0x44);
      rows[j + 1] = _mm256_shuffle_ps(pairs[j], pairs[j + 2], 0xEE);
      rows[j + 2] = _mm256_shuffle_ps(pairs[j + 1], pairs[j + 3], 0x44);
      rows[j + 3] = _mm256_shuffle_ps(pairs[j + 1], pairs[j + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      done(i + j, (EightFloats)_mm256_permute2f128_ps(rows[j], rows[j + 4], 0x20));
      done(i + j + 4, (EightFloats)_mm256_permute2f128_ps(rows[j], rows[j + 4], 0x31));
    }
  }
#else
  for (int64_t i = 0; i < count; ++i) {
    EightFloats column;
    for (int j = 0; j < 8; ++j) column[j] = row(j)[i];
    done(i, column);
  }
#endif
}

// x of some rows in words: those of row i are lane i % kWords of vector i / kWords, or of three vectors, one
// for each digit. Numbers are stored with `zeros` added.
struct XPanel {
  int64_t first = 0;            // of its rows
  int count = 0, vectors = 0;   // its rows, and vectors
  std::vector<Ints> words;      // (words of a row, vectors)
  Ints zeros[kPanelVectors] = {};

  // Writes `count` words of 8 rows, whose first lane is `lane` words after that of the first row, from the
  // word `first` on. Row j of them begins at row(j); those that are not there may be anything.
  template <typename Row>
  void write(int lane, int64_t first, int64_t count, const Row& row) {
    float* to = reinterpret_cast<float*>(words.data()) + lane + first * vectors * kWords;
    const int lanes = std::min(8, vectors * kWords - lane);
    for_columns(count, row, [&](int64_t i, EightFloats column) {
      if (lanes == 8) store(to + i * vectors * kWords, column);
      else std::memcpy(to + i * vectors * kWords, &column, lanes * sizeof *to);
    });
  }
};

// Sets sums[row][v] to the sums of some words of kTileRows rows of codes with a panel's vectors, each less
// the panel's zero times the sum of the codes.
template <int kVectors, bool kDigits>
JAXMEM_INLINE void tile_product(const uint8_t* codes, int64_t row_bytes, const Ints* x, int words, const Ints* zeros,
                                const int32_t* code_sums, Ints (*sums)[kVectors]) {
#pragma GCC unroll 8
  for (int row = 0; row < kTileRows; ++row) {
    const Ints sum = Ints{} + code_sums[row];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sums[row][v] = kDigits ? sum * -kXOffset : sum * -zeros[v];
  }
  for (int w = 0; w < words; ++w, x += kVectors) {
    Ints of_x[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) of_x[v] = load_once<Ints>(x + v);
#pragma GCC unroll 8
    for (int row = 0; row < kTileRows; ++row) {
      const Ints code = Ints{} + load<int32_t>(codes + row * row_bytes + 4 * w);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sums[row][v] = add_words(sums[row][v], of_x[v], code);
    }
  }
}

// Σ scale · code · x of 8 rows of codes: y[i] for row i of the panel. The scales are those of the groups.
template <int kVectors, bool kDigits>
void panel_product(const CodePanel& codes, const std::vector<Piece>& pieces, const EightFloats* scales,
                   const XPanel& x, EightFloats* y) {
  constexpr int kSums = kDigits ? 1 : kVectors;
  Floats tile[kByteRows][kSums] = {};
#pragma GCC unroll 1
  for (int first = 0; first < kByteRows; first += kTileRows) {
    for (size_t p = 0; p < pieces.size(); ++p) {
      const Piece& piece = pieces[p];
      Ints sums[kTileRows][kVectors];
      tile_product<kVectors, kDigits>(codes.words + first * codes.row_bytes + 4 * piece.word, codes.row_bytes,
                             x.words.data() + piece.word * kVectors, piece.words, x.zeros,
                             codes.sums[p].data() + first, sums);
      const float* scale = reinterpret_cast<const float*>(scales + piece.group) + first;
#pragma GCC unroll 8
      for (int row = 0; row < kTileRows; ++row) {
        const auto number = [&](int v) { return __builtin_convertvector(sums[row][v], Floats); };
        if constexpr (kDigits) {
          tile[first + row][0] += (number(0) * 0x1p14f + (number(1) * 0x1p7f + number(2))) * scale[row];
        } else {
#pragma GCC unroll 3
          for (int v = 0; v < kVectors; ++v) tile[first + row][v] += number(v) * scale[row];
        }
      }
    }
  }
  for_columns(kSums * kWords, [&](int row) { return reinterpret_cast<const float*>(tile[row]); },
              [&](int64_t i, EightFloats column) { y[i] = column; });
}

// The same for a panel of any number of vectors; of three with `kDigits`.
template <bool kDigits>
void any_panel_product(const CodePanel& codes, const std::vector<Piece>& pieces, const EightFloats* scales,
                       const XPanel& x, EightFloats* y) {
  if constexpr (kDigits) return panel_product<3, true>(codes, pieces, scales, x, y);
  if (x.vectors == 1) return panel_product<1, false>(codes, pieces, scales, x, y);
  if (kPanelVectors == 2 || x.vectors == 2) return panel_product<2, false>(codes, pieces, scales, x, y);
  panel_product<kPanelVectors, false>(codes, pieces, scales, x, y);
}

// kWords rows of x at most in three digits.
template <int kBits>
XPanel digit_panel(const FixedPoint<kBits>* rows, int64_t first, int count) {
  XPanel panel{first, count, 3};
  const int64_t vectors = rows->vectors.size();
  panel.words.resize(vectors * kVectorWords * 3);
  for (Ints& zero : panel.zeros) zero += kXOffset;
  for (int row = 0; row < count; row += 8) {
    for (int64_t v = 0; v < vectors; ++v) {
      const auto digits = [&](int j) -> const Digits& { return rows[std::min(row + j, count - 1)].vectors[v]; };
      for (int digit = 0; digit < 3; ++digit) {
        panel.write(digit * kWords + row, v * kVectorWords, kVectorWords, [&](int j) {
          const Digits& of_row = digits(j);
          return reinterpret_cast<const float*>(digit == 0 ? of_row.high : digit == 1 ? of_row.middle : of_row.low);
        });
      }
    }
  }
  if (kXOffset) {
    for (Ints& word : panel.words) word ^= static_cast<int32_t>(0x80808080);
  }
  return panel;
}

}  // namespace jaxmem
