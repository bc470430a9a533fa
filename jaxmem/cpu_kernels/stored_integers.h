// Rows of packed integer codes, as they are stored.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "coded_scales.h"
#include "packing.h"
#include "scales.h"

namespace jaxmem {

// The rows of a weight, as codecs/integer.py stores them.
struct IntegerRows : ScaledMatrix {
  int bits;                  // 2 to 8; codes of 8 bits are signed
  const uint8_t* fields[3];  // each (n · width/8, k)
  const uint8_t* zeros[3];   // each (groups, n · width/8), or null: the middle of the codes' range
  const void* low;           // (groups, n) of the scales' type, where the smallest code means it; or null
  // If 2 of every 4 columns are kept, there are no zero points, `fields` are (n · width/8, k / 2), and
  // these are the fields of the patterns, (n · width/8, k / 4); else null.
  const uint8_t* patterns[2];
  CodedNumbers scale_codes, low_codes;  // in place of `scale` and of `low`, if they have bits

  int64_t kept() const { return patterns[0] ? k / 2 : k; }  // columns of `fields`
  bool has_offsets() const { return zeros[0] || low || low_codes.bits; }

  // Fetches the scales of the first rows, for which no earlier rows fetch them.
  void fetch_first() const {
    for (const void* numbers : {scale, low}) {
      for (int64_t g = 0; numbers && g < groups(); ++g) fetch_block(numbers, g, 0);
    }
  }
};

// The last rows of a weight, fewer than 8, filled up with zeros.
struct LastRows {
  std::vector<uint8_t> fields[3], zeros[3], patterns[2], scale, low, coded[6];
  IntegerRows weight;

  LastRows(const IntegerRows& all, int64_t row) : weight(all) {
    const int64_t groups = all.groups(), size = all.half_scale ? 2 : 4;
    for (int f = 0; f < field_count(all.bits); ++f) {
      const int width = field(all.bits, f).width;
      const int64_t first = row * width / 8, bytes = packed_size(all.n, width);
      fields[f] = padded_rows(all.fields[f], first, bytes, width, all.kept());
      weight.fields[f] = fields[f].data();
      if (!all.zeros[0]) continue;
      zeros[f] = padded(all.zeros[f], groups, bytes, first, bytes - first, width);
      weight.zeros[f] = zeros[f].data();
    }
    for (int f = 0; all.patterns[0] && f < 2; ++f) {
      const int width = field(3, f).width;
      patterns[f] = padded_rows(all.patterns[f], row * width / 8, packed_size(all.n, width), width, all.k / 4);
      weight.patterns[f] = patterns[f].data();
    }
    pad(all, row, all.scale_codes, coded, &weight.scale_codes);
    pad(all, row, all.low_codes, coded + 3, &weight.low_codes);
    if (!all.scale_codes.bits) {
      scale = padded(all.scale, groups, all.n * size, row * size, (all.n - row) * size, kByteRows * size);
      weight.scale = scale.data();
    }
    if (all.low) {
      low = padded(all.low, groups, all.n * size, row * size, (all.n - row) * size, kByteRows * size);
      weight.low = low.data();
    }
    weight.n = kByteRows;
  }

 private:
  // Numbers as codes; `bytes` are the units, then the fields.
  static void pad(const IntegerRows& all, int64_t row, const CodedNumbers& from, std::vector<uint8_t>* bytes,
                  CodedNumbers* to) {
    if (!from.bits) return;
    const int64_t groups = all.groups(), units = (groups + from.per - 1) / from.per;
    bytes[0] = padded(from.units, units, all.n * 2, row * 2, (all.n - row) * 2, kByteRows * 2);
    to->units = bytes[0].data();
    for (int f = 0; f < field_count(from.bits); ++f) {
      const int width = field(from.bits, f).width;
      bytes[f + 1] = padded_rows(from.fields[f], row * width / 8, packed_size(all.n, width), width, groups);
      to->fields[f] = bytes[f + 1].data();
    }
  }

  // Rows [first, last) of `columns` bytes, filled up to `count` rows.
  static std::vector<uint8_t> padded_rows(const void* from, int64_t first, int64_t last, int64_t count,
                                          int64_t columns) {
    return padded(from, 1, 0, first * columns, (last - first) * columns, count * columns);
  }

  // From each of some rows of `stride` bytes, `count` bytes from `first` on, filled up to `length`.
  static std::vector<uint8_t> padded(const void* from, int64_t rows, int64_t stride, int64_t first,
                                     int64_t count, int64_t length) {
    std::vector<uint8_t> bytes(rows * length);
    for (int64_t i = 0; count > 0 && i < rows; ++i) {
      std::memcpy(bytes.data() + i * length, static_cast<const uint8_t*>(from) + i * stride + first, count);
    }
    return bytes;
  }
};

}  // namespace jaxmem
