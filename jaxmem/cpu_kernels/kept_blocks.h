// y = x · rows^T of packed integers of which whole blocks are kept (codecs/block_sparse.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "decoded_rows.h"
#include "parallel.h"
#include "stored_integers.h"

namespace jaxmem {

// Which blocks of `inputs` columns are kept in the rows of each strip.
struct KeptBlocks {
  int64_t strips, kept, inputs;
  const uint8_t* places;  // (strips, kept)
  int64_t place_bytes;    // 1 or 2

  int64_t column(int64_t strip, int64_t block) const {
    uint16_t place = 0;
    std::memcpy(&place, places + (strip * kept + block) * place_bytes, place_bytes);
    return place * inputs;
  }
};

// The kept blocks of packed integers (n, kept · inputs) as a product with decoded weights reads them.
template <int kBits>
class DecodedBlocks {
 public:
  DecodedBlocks(const IntegerRows& weight, const KeptBlocks& blocks, int64_t k)
      : rows_(weight), blocks_(blocks), strip_rows_(weight.n / blocks.strips), k_(k) {}

  // All of the rows are of one strip.
  void begin(int64_t row, int64_t rows) {
    rows_.begin(row, rows);
    runs_.clear();
    for (int64_t b = 0; b < blocks_.kept; ++b) {
      const int64_t first = blocks_.column(row / strip_rows_, b), end = std::min(k_, first + blocks_.inputs);
      for (int64_t column = first; column < end;) {  // no run crosses from one tile of x to the next one
        const int64_t next = std::min(end, (column / kDecodedColumns + 1) * kDecodedColumns);
        runs_.push_back({column, next - column, b * blocks_.inputs + column - first});
        column = next;
      }
    }
  }

  const std::vector<Run>& runs() const { return runs_; }

  void decode(int64_t row, const Run& run, float* to) { rows_.decode(row, run, to); }

 private:
  DecodedIntegers<kBits, AllColumns<kBits>> rows_;
  KeptBlocks blocks_;
  int64_t strip_rows_, k_;
  std::vector<Run> runs_;
};

// y (m, n), where `columns` are those of x. The rows of a strip are a multiple of kDecodedRows, and those of the
// weight may be more than n.
template <typename Pool>
void blocks_product(Pool& pool, const IntegerRows& weight, const KeptBlocks& blocks, const float* x, int64_t m,
                    int64_t columns, int64_t n, float* y) {
  const auto each = [&](int64_t count, const auto& run) { parallel_for(pool, pool.num_threads(), count, run); };
  const ScaledMatrix all{n, columns, columns};
  for (int64_t first_input = 0; first_input < m; first_input += InputTiles::kRows) {
    const int64_t count = std::min<int64_t>(InputTiles::kRows, m - first_input);
    const InputTiles inputs(x + first_input * columns, count, m, all, each);
    for_rows(pool, 1, n, weight.k, [&](int64_t, int64_t first, int64_t last) {
      const int64_t whole = (last + kByteRows - 1) / kByteRows * kByteRows;
      with_bits(weight.bits, [&](auto bits) {
        DecodedBlocks<decltype(bits)::value> decoded(weight, blocks, columns);
        decoded_product(decoded, inputs, first, whole, [&](int64_t i, int64_t row, EightFloats values) {
          std::memcpy(y + (first_input + i) * n + row, &values, std::min<int64_t>(kByteRows, n - row) * sizeof *y);
        });
      });
    });
  }
}

}  // namespace jaxmem
