// Compares every product of this folder with a plain loop, on small random weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attended_row.h"
#include "integer_rows.h"
#include "scaled_rows.h"

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

// How x is multiplied: in three digits, rounded to 8 bits in panels or rows, or with decoded weights.
enum class Way { kDigits, kRounded, kRoundedRows, kDecoded };

// Whether the product of (m, k) random numbers is that of a plain loop.
inline bool is_right(int bits, int64_t m, int64_t n, int64_t k, int64_t group, Offsets offsets,
                     bool is_kept, int scale_bits, Way way, std::mt19937& random) {
  const bool rounds = way == Way::kRounded || way == Way::kRoundedRows;
  const RandomRows rows(bits, n, k, group, offsets, is_kept, scale_bits, random);
  std::vector<float> x(m * k), y(m * n, NAN);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;
  with_bits(bits, [&](auto b) {
    constexpr int kBits = decltype(b)::value;
    const auto each = [](int64_t count, const auto& run) {
      for (int64_t i = 0; i < count; ++i) run(i);
    };
    const auto multiply = [&](const auto& inputs) { integer_product<kBits>(rows.weight, inputs, 0, n, y.data()); };
    if constexpr (has_rounded_rows(kBits)) {
      if (way == Way::kRoundedRows) return multiply(RoundedRows<kBits>(x.data(), m, m, rows.weight, each));
    }
    if (rounds) multiply(RoundedInputs(x.data(), m, m, rows.weight, each));
    else if (way == Way::kDecoded) multiply(InputTiles(x.data(), m, m, rows.weight, each));
    else multiply(Inputs<kBits>(x.data(), m, m, rows.weight, each));
  });
  for (int64_t i = 0; rounds && k && i < m; ++i) {
    float* row = x.data() + i * k;
    const float low = std::min(0.0f, *std::min_element(row, row + k)), high = std::max(0.0f, *std::max_element(row, row + k));
    const float range = (high - low) / 255, step = range == 0 ? 1 : range;
    const float zero = std::nearbyint(-low / step) - 128;
    for (int64_t column = 0; column < k; ++column) {
      const float code = std::min(127.0f, std::max(-128.0f, std::nearbyint(row[column] / step) + zero));
      row[column] = (code - zero) * step;
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t row = 0; row < n; ++row) {
      double sum = 0, size = 0;
      for (int64_t column = 0; column < k; ++column) {
        const double w = rows.value(row, column);
        sum += w * x[i * k + column];
        size += std::fabs(w);
      }
      // Of the fixed point of x, 2^-20.9; of sums in f32 that offsets make larger, the rest.
      const double bound = size * 0x1p-20 + 0x1p-16 * (1 << bits) / 16.0 * 0x1p-4 * k;
      if (!(std::fabs(y[i * n + row] - sum) <= bound)) return false;
    }
  }
  return true;
}

// Whether the product of (m, k) random numbers with codes of 16 levels, or with floats of 8 bits, is
// that of a plain loop.
inline bool scaled_is_right(int exponent_bits, int64_t m, int64_t n, int64_t k, int64_t group, bool is_decoded,
                            std::mt19937& random) {
  const int bits = exponent_bits ? 8 : 4;
#if defined(__AVX2__) && !defined(JAXMEM_AVX512)
  const bool in_integers = bits == 4 && m == 1 && !is_decoded;
#else
  const bool in_integers = false;
#endif
  ScaledRows weight{{n, k, group, nullptr, true}, 0.5f, bits, exponent_bits, nullptr, nullptr};
  std::vector<float> levels(16), x(m * k), y(m * n, NAN);
  std::vector<uint8_t> codes(packed_size(n, bits) * k);
  std::vector<uint16_t> scale_bits(n * weight.groups());
  for (float& value : levels) value = static_cast<float>(random() % 2001) / 1000 - 1;
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;
  for (uint16_t& half : scale_bits) half = random() % 0x3C00;  // below 1
  for (uint8_t& code : codes) {
    do code = static_cast<uint8_t>(random());
    while (bits == 8 && (code & 127) >> (7 - exponent_bits) == (1 << exponent_bits) - 1);  // finite
  }
  weight.levels = levels.data(), weight.codes = codes.data(), weight.scale = scale_bits.data();
  const auto value = [&](int64_t row, int64_t column) {
    if (bits == 4) return levels[codes[row / 2 * k + column] >> row % 2 * 4 & 15];
    const int code = codes[row * k + column] ^ 128, fraction_bits = 7 - exponent_bits;
    const int exponent = (code & 127) >> fraction_bits, fraction = code & ((1 << fraction_bits) - 1);
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const float size = std::ldexp(fraction + (exponent ? 1 << fraction_bits : 0),
                                  std::max(exponent, 1) - bias - fraction_bits);
    return code & 128 ? -size : size;
  };
  const auto multiply = [&](const auto& inputs) { scaled_product(weight, inputs, m, 0, n, y.data()); };
  const auto each = [](int64_t count, const auto& run) {
    for (int64_t i = 0; i < count; ++i) run(i);
  };
  if (is_decoded) multiply(InputTiles(x.data(), m, m, weight, each));
  else with_inputs(weight, x.data(), m, multiply);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t row = 0; row < n; ++row) {
      double sum = 0, size = 0, most = 0;
      for (int64_t column = 0; column < k; ++column) {
        const double scale = from_half(scale_bits[column / group * n + row]) * weight.unit;
        const double w = value(row, column) * scale;
        sum += w * x[i * k + column];
        size += std::fabs(w * x[i * k + column]);
        if (in_integers) most += scale;  // the largest level and the largest x are about 1 (see level_rows.h)
      }
      if (!(std::fabs(y[i * n + row] - sum) <= size * 0x1p-18 + most * 0x1p-20)) return false;
    }
  }
  return true;
}

// Whether attention of random queries is that of a plain loop.
inline bool attention_is_right(int64_t heads, int64_t width, int64_t first, int64_t last, std::mt19937& random) {
  const auto numbers = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random() % 2001) / 1000 - 1;
    return values;
  };
  const auto q = numbers(heads * width), keys = numbers(last * width), values = numbers(last * width);
  std::vector<float> y(heads * width, NAN);
  attend_row(q.data(), heads, [&](int64_t s) { return keys.data() + s * width; },
             [&](int64_t s) { return values.data() + s * width; }, first, last, width, 0.5f, y.data());
  for (int64_t h = 0; h < heads; ++h) {
    std::vector<double> sums(width);
    double total = 0;
    for (int64_t s = first; s < last; ++s) {
      double score = 0;
      for (int64_t i = 0; i < width; ++i) score += q[h * width + i] * static_cast<double>(keys[s * width + i]);
      total += std::exp(0.5 * score);
      for (int64_t i = 0; i < width; ++i) sums[i] += std::exp(0.5 * score) * values[s * width + i];
    }
    for (int64_t i = 0; i < width; ++i) {
      if (!(std::fabs(y[h * width + i] - sums[i] / total) <= 1e-5)) return false;
    }
  }
  return true;
}

inline std::string self_test() {
  std::mt19937 random(0);
  const struct { int64_t m, n, k, group; } shapes[] = {
      {1, 1, 1, 1}, {1, 9, 70, 70}, {2, 131, 300, 64}, {1, 7, 33, 5}, {3, 16, 512, 128},
      {0, 8, 32, 32}, {1, 0, 32, 32}, {1, 8, 0, 1}, {1, 2, 5000, 5000},
      {2, 9, 96, 32}, {1, 9, 128, 64}, {1, 17, 150, 32}, {1, 8, 72, 32}, {1, 9, 44, 16}, {1, 9, 28, 8},
      {59, 9, 150, 32}, {25, 131, 300, 300},
  };
  for (int bits = 2; bits <= 8; ++bits) {
    for (const auto& [m, n, k, group] : shapes) {
      for (const Offsets offsets : {Offsets::kNone, Offsets::kZeros, Offsets::kLow}) {
        const bool plain = offsets == Offsets::kNone, is_kept = has_kept_columns(bits) && plain;
        const int scale_bits = offsets == Offsets::kZeros ? 0 : n % 3 == 0 ? 8 : n % 3 == 1 ? 6 : 4;
        const auto fails = [&](Way way, int scale_bits) {
          return !is_right(bits, m, n, k, group, offsets, false, scale_bits, way, random);
        };
        const auto kept_fails = [&](Way way) {
          return !is_right(bits, m, n, k / 4 * 4, 4 * group, offsets, true, 0, way, random);
        };
        if (fails(Way::kDigits, 0) || fails(Way::kRounded, 0) || fails(Way::kRoundedRows, scale_bits) || fails(Way::kDecoded, scale_bits) ||
            scale_bits && fails(Way::kDigits, scale_bits) ||
            is_kept && (kept_fails(Way::kDigits) || kept_fails(Way::kDecoded))) {
          return std::to_string(bits) + " bits, (" + std::to_string(m) + ", " + std::to_string(k) +
                 ") times (" + std::to_string(k) + ", " + std::to_string(n) + ") in groups of " +
                 std::to_string(group) + (offsets == Offsets::kZeros ? " with zero points" : offsets == Offsets::kLow ? " with offsets" : "");
        }
      }
    }
  }
  for (const int exponent_bits : {0, 4, 5}) {
    for (const auto& [m, n, k, group] : shapes) {
      if (!scaled_is_right(exponent_bits, m, n, k, group, false, random) ||
          !scaled_is_right(exponent_bits, m, n, k, group, true, random)) {
        return (exponent_bits ? "floats of 8 bits, (" : "levels of 4 bits, (") + std::to_string(m) +
               ", " + std::to_string(k) + ") times (" + std::to_string(k) + ", " +
               std::to_string(n) + ") in groups of " + std::to_string(group);
      }
    }
  }
  const struct { int64_t heads, width, first, last; } attended[] = {
      {1, 1, 0, 1}, {3, 64, 0, 9}, {2, 20, 3, 7}, {1, 33, 5, 6}, {9, 8, 0, 40},
  };
  for (const auto& [heads, width, first, last] : attended) {
    if (!attention_is_right(heads, width, first, last, random)) {
      return "attention of " + std::to_string(heads) + " heads of " + std::to_string(width);
    }
  }
  return "";
}

}  // namespace jaxmem
