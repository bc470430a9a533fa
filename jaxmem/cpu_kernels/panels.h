// Products of codes with many rows of x. Some rows of codes are unpacked once, and meet the rows of a panel
// of x: its vectors have a word of each of kWords rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "code_panel.h"
#include "columns.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

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
      for (int digit = 0; digit < 3; ++digit) {  // where vectors are short, each is written over the last one's end
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
