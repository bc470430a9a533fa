// Rows of codes as f32, as products with panels of decoded weights read them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "decoded_panels.h"
#include "kept_columns.h"
#include "row_blocks.h"
#include "scaled_codes.h"
#include "scales.h"
#include "simd.h"
#include "stored_integers.h"

namespace jaxmem {

// All of k columns, some at a time.
inline std::vector<Run> all_columns(int64_t k) {
  std::vector<Run> runs;
  for (int64_t first = 0; first < k; first += kDecodedColumns) {
    runs.push_back({first, std::min<int64_t>(kDecodedColumns, k - first), first});
  }
  return runs;
}

// Scales and offsets of a panel's rows: a number of a weight is scale · decoded number − offset.
struct PanelScales {
  int64_t groups;
  std::vector<int32_t> group_at;             // of each column, and of some columns after the last one
  std::vector<EightFloats> scales, offsets;  // (kBlockVectors, groups)
  alignas(kLanes) float numbers[kByteRows][kDecodedColumns] = {};  // that are decoded, of 8 rows

  explicit PanelScales(const ScaledMatrix& weight)
      : groups(weight.groups()), group_at(weight.k + kDecodedColumns),
        scales(groups * kBlockVectors), offsets(groups * kBlockVectors) {
    for (int64_t column = 0; column < weight.k; ++column) group_at[column] = column / weight.group;
  }

  // Writes the `numbers` of the v-th 8 rows for the columns of a run, those of a column together.
  // `column_of(i)` is where the number i of each kLanes numbers belongs.
  template <typename ColumnOf>
  JAXMEM_INLINE void write(int64_t v, const Run& run, float* to, const ColumnOf& column_of) const {
    const EightFloats *scale = scales.data() + v * groups, *offset = offsets.data() + v * groups;
    for (int64_t first = 0; first < run.count; first += kLanes) {
      for_columns(kLanes, [&](int row) { return numbers[row] + first; }, [&](int64_t i, EightFloats column) {
        const int64_t at = first + column_of(i), g = group_at[run.stored + at];
        store(to + at * kDecodedRows, column * scale[g] - offset[g]);
      });
    }
  }
};

// Packed integers.
template <int kBits, typename Rows>
class DecodedIntegers {
 public:
  explicit DecodedIntegers(const IntegerRows& weight)
      : weight_(weight), panel_(weight), runs_(all_columns(weight.k)),
        less_(Bytes{} + static_cast<uint8_t>(kBits == 8 ? 0 : subtracted_code<kBits>(weight))) {}

  void begin(int64_t row, int64_t rows) {
    first_ = row;
    read_block<kBits>(weight_, row, rows, panel_.scales.data(), [this](int64_t g) {
      return [this, g](int64_t v, EightFloats offsets) { panel_.offsets[v * panel_.groups + g] = offsets; };
    });
  }

  const std::vector<Run>& runs() const { return runs_; }

  void decode(int64_t row, const Run& run, float* to) {
    const Rows rows = rows_at<kBits, Rows>(weight_, row);
    read(rows, run, std::make_integer_sequence<int, kByteRows>{});
    panel_.write((row - first_) / kByteRows, run, to, [](int64_t i) { return i; });
  }

 private:
  IntegerRows weight_;
  PanelScales panel_;
  std::vector<Run> runs_;
  Bytes less_;
  int64_t first_ = 0;

  template <int... kRow>
  void read(const Rows& rows, const Run& run, std::integer_sequence<int, kRow...>) {
    for (int64_t first = 0; first < run.count; first += kLanes) {
      const int64_t column = run.stored + first;
      const int count = static_cast<int>(run.count - first);
      if (count >= kLanes) (keep<kRow>(rows.template codes<kRow, true>(column, kLanes), first), ...);
      else (keep<kRow>(rows.template codes<kRow, false>(column, count), first), ...);
    }
  }

  template <int kRow>
  JAXMEM_INLINE void keep(Bytes codes, int64_t first) {
    const Bytes centred = codes - less_;
    for (int i = 0; i < kLanes; i += kWords) {
      store(panel_.numbers[kRow] + first + i, signed_bytes(reinterpret_cast<const uint8_t*>(&centred) + i));
    }
  }
};

// Codes of 4 bits with a table, and floats of 8 bits.
template <typename Decoder>
class DecodedScaled {
 public:
  explicit DecodedScaled(const ScaledRows& weight)
      : weight_(weight), decoder_(weight), panel_(weight), runs_(all_columns(weight.k)) {
    for (int column = 0; column < kLanes; ++column) column_of_[Decoder::place(column)] = column;
  }

  void begin(int64_t row, int64_t rows) {
    first_ = row;
    for (int64_t g = 0; g < panel_.groups; ++g) {
      for (int64_t v = 0; v * kByteRows < rows; ++v) {
        panel_.scales[v * panel_.groups + g] = weight_.scales_of(g, row + v * kByteRows) * weight_.unit;
      }
    }
  }

  const std::vector<Run>& runs() const { return runs_; }

  void decode(int64_t row, const Run& run, float* to) {
    constexpr int kCodes = Decoder::kRowsOfByte;
    for (int64_t r = 0; r < std::min<int64_t>(kByteRows, weight_.n - row); ++r) {
      const uint8_t* from = weight_.codes + (row + r) / kCodes * weight_.k + run.stored;
      for (int64_t first = 0; first < run.count; first += kLanes) {
        uint8_t few[kLanes] = {};
        const bool whole = first + kLanes <= run.count;
        __builtin_prefetch(from + first + kDecodedColumns);
        if (!whole) std::memcpy(few, from + first, run.count - first);
        Floats values[kStepVectors];
        decoder_.decode(whole ? from + first : few, r % kCodes, values);
        for (int v = 0; v < kStepVectors; ++v) store(panel_.numbers[r] + first + v * kWords, values[v] * Decoder::kUnit);
      }
    }
    panel_.write((row - first_) / kByteRows, run, to, [this](int64_t i) { return column_of_[i]; });
  }

 private:
  ScaledRows weight_;
  Decoder decoder_;
  PanelScales panel_;
  std::vector<Run> runs_;
  int column_of_[kLanes];
  int64_t first_ = 0;
};

}  // namespace jaxmem
