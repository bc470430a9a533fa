// Small random weights of packed integers, with the value of each number, for tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kept_columns.h"
#include "packing.h"
#include "stored_integers.h"

namespace jaxmem {

enum class Offsets { kNone, kZeros, kLow };

// Random scales as codes, or what smallest codes mean.
struct RandomCodes {
  std::vector<uint8_t> units, fields[2];
  CodedNumbers numbers;
  int64_t n = 0, groups = 0;

  RandomCodes() = default;
  RandomCodes(int bits, int64_t n, int64_t groups, std::mt19937& random) : n(n), groups(groups) {
    numbers.bits = bits, numbers.middle = bits == 6 ? 32 : 0, numbers.per = 3;
    for (int64_t i = 0; i < (groups + 2) / 3 * n; ++i) {
      const uint16_t half = random() % 0x2400;  // below 2^-6
      units.push_back(half & 255), units.push_back(half >> 8);
    }
    numbers.units = units.data();
    for (int f = 0; f < field_count(bits); ++f) {
      fields[f].resize(packed_size(n, field(bits, f).width) * groups);
      for (uint8_t& byte : fields[f]) byte = static_cast<uint8_t>(random());
      numbers.fields[f] = fields[f].data();
    }
  }

  double at(int64_t row, int64_t g) const {
    int code = 0;
    for (int f = 0; f < field_count(numbers.bits); ++f) {
      const auto [width, shift] = field(numbers.bits, f);
      code |= (fields[f][row * width / 8 * groups + g] >> row * width % 8 & ((1 << width) - 1)) << shift;
    }
    code = numbers.bits == 8 ? static_cast<int8_t>(code) : code;
    const uint8_t* unit = units.data() + (g / numbers.per * n + row) * 2;
    return from_half(unit[0] | unit[1] << 8) * static_cast<double>(code - numbers.middle);
  }
};

// Random rows of packed integers; each array has its exact size, so that a sanitizer sees its end.
struct RandomRows {
  std::vector<std::vector<uint8_t>> fields, zeros, patterns;
  std::vector<uint16_t> scale, low;
  RandomCodes scale_codes, low_codes;
  IntegerRows weight;

  RandomRows(int bits, int64_t n, int64_t k, int64_t group, Offsets offsets, bool is_kept, int scale_bits,
             std::mt19937& random)
      : weight{{n, k, group, nullptr, true}, bits, {}, {}} {
    const auto bytes = [&](int64_t count) {
      std::vector<uint8_t> values(count);
      for (uint8_t& value : values) value = static_cast<uint8_t>(random());
      return values;
    };
    for (int f = 0; is_kept && f < 2; ++f) {
      patterns.push_back(bytes(packed_size(n, field(3, f).width) * (k / 4)));
      weight.patterns[f] = patterns[f].data();
    }
    for (int f = 0; f < field_count(bits); ++f) {
      const int64_t rows = packed_size(n, field(bits, f).width);
      fields.push_back(bytes(rows * weight.kept()));
      zeros.push_back(bytes(rows * weight.groups()));
    }
    for (int64_t i = 0; i < n * weight.groups(); ++i) scale.push_back(random() % 0x3C00);  // below 1
    for (int64_t i = 0; i < n * weight.groups(); ++i) low.push_back(random() % 0x3C00);
    if (offsets == Offsets::kLow) weight.low = low.data();
    for (int f = 0; f < field_count(bits); ++f) {
      weight.fields[f] = fields[f].data();
      if (offsets == Offsets::kZeros) weight.zeros[f] = zeros[f].data();
    }
    weight.scale = scale.data();
    if (scale_bits) {
      scale_codes = RandomCodes(scale_bits, n, weight.groups(), random);
      weight.scale_codes = scale_codes.numbers;
      weight.scale = nullptr;
    }
    if (scale_bits && offsets == Offsets::kLow) {
      low_codes = RandomCodes(scale_bits, n, weight.groups(), random);
      weight.low_codes = low_codes.numbers;
      weight.low = nullptr;
    }
  }

  // The code of a row in a column of `width`-bit fields with `columns` columns.
  int code(const uint8_t* const* from, int64_t row_bytes, int64_t at_row, int64_t column,
           bool rows_are_packed) const {
    int code = 0;
    for (int f = 0; f < field_count(weight.bits); ++f) {
      const Field layout = field(weight.bits, f);
      const int64_t bit = at_row * layout.width;
      const int64_t byte = rows_are_packed ? bit / 8 * row_bytes + column
                                           : column * packed_size(weight.n, layout.width) + bit / 8;
      code |= (from[f][byte] >> bit % 8 & ((1 << layout.width) - 1)) << layout.shift;
    }
    return weight.bits == 8 ? static_cast<int8_t>(code) : code;
  }

  double value(int64_t row, int64_t column) const {
    const int64_t g = column / weight.group;
    const int middle = weight.bits == 8 ? 0 : 1 << (weight.bits - 1);
    const int zero = weight.zeros[0] ? code(weight.zeros, 0, row, g, false) : middle;
    int at = column;
    if (weight.patterns[0]) {
      int pattern = 0;
      for (int f = 0; f < 2; ++f) {
        const Field layout = field(3, f);
        const int byte = patterns[f][row * layout.width / 8 * (weight.k / 4) + column / 4];
        pattern |= (byte >> row * layout.width % 8 & ((1 << layout.width) - 1)) << layout.shift;
      }
      if (kPlaces[pattern][column % 4] == 128) return 0;
      at = column / 4 * 2 + kPlaces[pattern][column % 4];
    }
    const int number = code(weight.fields, weight.kept(), row, at, true) - zero;
    const bool coded = weight.scale_codes.bits;
    const double step = coded ? scale_codes.at(row, g) : from_half(scale[g * weight.n + row]);
    if (!weight.low && !weight.low_codes.bits) return number * step;
    return (number + (1 << (weight.bits - 1))) * step + (coded ? low_codes.at(row, g) : from_half(low[g * weight.n + row]));
  }
};

}  // namespace jaxmem
