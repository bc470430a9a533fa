// Products of many rows of x with codes that are decoded to f32, some rows and columns at a time. So a BLAS
// multiplies, except that no weight is there as a whole in f32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "panels.h"
#include "scales.h"
#include "simd.h"

namespace jaxmem {

constexpr int kDecodedVectors = 2, kDecodedRows = kDecodedVectors * kWords;  // of a weight, which 8 divides
constexpr int kDecodedColumns = 128;  // whose numbers stay in the first cache
#if defined(JAXMEM_AVX512) || defined(__ARM_NEON)  // 32 registers
constexpr int kInputRows = 12;  // of x
#else
constexpr int kInputRows = 6;
#endif

// Rows of x (m, k) in tiles of kInputRows rows, those of kDecodedColumns columns after each other: a tile has
// the numbers of a column together. The last tile is filled up with zeros.
struct InputTiles {
  static constexpr bool kRounds = false;
  static constexpr int64_t kRows = 40 * kInputRows;  // that meet a decoded weight together

  int64_t m, k, tiles;
  std::vector<float> numbers;

  // `each(count, run)` calls run(i) for i from 0 to `count`.
  template <typename Weight, typename Each>
  InputTiles(const float* x, int64_t m, int64_t, const Weight& weight, const Each& each)
      : m(m), k(weight.k), tiles((m + kInputRows - 1) / kInputRows), numbers(tiles * kInputRows * k) {
    each(tiles, [&](int64_t tile) {
      for (int64_t first = 0; first < k; first += kDecodedColumns) {
        float* to = numbers.data() + of(tile, first);
        const int64_t count = std::min<int64_t>(kDecodedColumns, k - first);
        const int64_t rows = std::min<int64_t>(kInputRows, m - tile * kInputRows);
        for (int64_t row = 0; row < rows; ++row) {
          const float* from = x + (tile * kInputRows + row) * k + first;
          for (int64_t c = 0; c < count; ++c) to[c * kInputRows + row] = from[c];
        }
      }
    });
  }

  // Where the numbers of a tile begin from a column on.
  int64_t of(int64_t tile, int64_t column) const {
    const int64_t first = column / kDecodedColumns * kDecodedColumns;
    const int64_t width = std::min<int64_t>(kDecodedColumns, k - first);
    return (first * tiles + tile * width + column - first) * kInputRows;
  }
};

// Columns of a weight that are not all 0 in the rows of a panel.
struct Run {
  int64_t column, count;
  int64_t stored;  // where they begin among those that are stored
};

// Adds to `sums` (kInputRows, kDecodedVectors) the products of a tile of x with `count` columns of a panel.
inline void add_tile_product(const float* x, const Floats* panel, int64_t count, Floats* sums) {
  Floats parts[kInputRows][kDecodedVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kInputRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kDecodedVectors; ++v) parts[i][v] = sums[i * kDecodedVectors + v];
  }
  for (int64_t c = 0; c < count; ++c, x += kInputRows, panel += kDecodedVectors) {
    Floats values[kDecodedVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kDecodedVectors; ++v) values[v] = load_once<Floats>(panel + v);
#pragma GCC unroll 12
    for (int i = 0; i < kInputRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kDecodedVectors; ++v) parts[i][v] += values[v] * x[i];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kInputRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kDecodedVectors; ++v) sums[i * kDecodedVectors + v] = parts[i][v];
  }
}

// Calls done(i, row, y) for each row i of x and the y of 8 rows of a weight from `row` on, for its rows
// [first, last); 8 divides `first`. `weight.begin(row, rows)` calls for some rows of it; then `weight.runs()` are
// the columns that they have, and `weight.decode(row, run, to)` writes those of 8 rows from `row` on: 8 numbers
// of each column, which are kDecodedRows floats after each other, perhaps of kDecodedColumns columns.
template <typename Weight, typename Done>
void decoded_product(Weight& weight, const InputTiles& x, int64_t first, int64_t last, const Done& done) {
  std::vector<Floats> sums(x.tiles * kInputRows * kDecodedVectors);
  Floats panel[kDecodedColumns * kDecodedVectors] = {};
  for (int64_t row = first; row < last; row += kDecodedRows) {
    const int64_t rows = std::min<int64_t>(kDecodedRows, last - row);
    std::fill(sums.begin(), sums.end(), Floats{});
    weight.begin(row, rows);
    for (const Run& run : weight.runs()) {
      for (int64_t i = 0; i < rows; i += kByteRows) {
        weight.decode(row + i, run, reinterpret_cast<float*>(panel) + i);
      }
      for (int64_t tile = 0; tile < x.tiles; ++tile) {
        add_tile_product(x.numbers.data() + x.of(tile, run.column), panel, run.count,
                         sums.data() + tile * kInputRows * kDecodedVectors);
      }
    }
    for (int64_t i = 0; i < x.m; ++i) {
      const float* of_row = reinterpret_cast<const float*>(sums.data() + i * kDecodedVectors);
      for (int64_t v = 0; v < rows; v += kByteRows) done(i, row + v, load<EightFloats>(of_row + v));
    }
  }
}

}  // namespace jaxmem
