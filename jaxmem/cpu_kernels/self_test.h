// Compares every product of this folder with a plain loop, on small random weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "attended_row.h"
#include "integer_rows.h"
#include "kept_blocks.h"
#include "random_rows.h"
#include "scaled_rows.h"

namespace jaxmem {

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

// In place of a pool of threads: the calling one does all.
struct OneThread {
  int64_t num_threads() const { return 1; }
  template <typename Work>
  void Schedule(Work) {}
};

// Whether the product of (m, k) random numbers with kept blocks (outputs, inputs) is that of a plain loop.
inline bool blocks_are_right(int bits, int64_t m, int64_t n, int64_t k, int64_t outputs, int64_t inputs,
                             Offsets offsets, std::mt19937& random) {
  const int64_t strips = (n + outputs - 1) / outputs, all = (k + inputs - 1) / inputs, kept = (all + 1) / 2;
  const RandomRows rows(bits, strips * outputs, kept * inputs, inputs + 3, offsets, false, 0, random);
  std::vector<float> x(m * k), y(m * n, NAN);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;
  std::vector<uint8_t> places;
  for (int64_t s = 0; s < strips; ++s) {
    for (int64_t b = 0; b < kept; ++b) places.push_back(all - kept + b - (b + s) % 2 * (all > kept && b == 0));
  }
  const KeptBlocks blocks{strips, kept, inputs, places.data(), 1};
  OneThread pool;
  blocks_product(pool, rows.weight, blocks, x.data(), m, k, n, y.data());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t row = 0; row < n; ++row) {
      double sum = 0, size = 0;
      for (int64_t at = 0; at < kept * inputs; ++at) {
        const int64_t column = blocks.column(row / outputs, at / inputs) + at % inputs;
        if (column >= k) continue;
        sum += rows.value(row, at) * x[i * k + column];
        size += std::fabs(rows.value(row, at));
      }
      if (!(std::fabs(y[i * n + row] - sum) <= size * 0x1p-18 + 0x1p-16 * (1 << bits) / 256.0 * k)) return false;
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
  const struct { int64_t m, n, k, outputs, inputs; } kept[] = {
      {1, 1, 1, 32, 1}, {13, 50, 70, 32, 8}, {2, 64, 300, 64, 40}, {500, 33, 140, 32, 200}, {0, 32, 32, 32, 8},
  };
  for (int bits = 2; bits <= 8; ++bits) {
    for (const auto& [m, n, k, outputs, inputs] : kept) {
      if (!blocks_are_right(bits, m, n, k, outputs, inputs, Offsets::kNone, random) ||
          !blocks_are_right(bits, m, n, k, outputs, inputs, Offsets::kZeros, random)) {
        return std::to_string(bits) + " bits, (" + std::to_string(m) + ", " + std::to_string(k) + ") times blocks of (" +
               std::to_string(outputs) + ", " + std::to_string(inputs) + ")";
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
