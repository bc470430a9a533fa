// Rows of x in 8 bits, each with a range of its own: x ≈ step · (code − zero), codes from −128 to 127.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "columns.h"
#include "panels.h"
#include "simd.h"
#include "stored_integers.h"

namespace jaxmem {

// The numbers of a row, as codecs/dynamic_quantization.py rounds them.
struct RoundedRow {
  float step = std::numeric_limits<float>::quiet_NaN();  // NaN if an x is not finite
  int zero = 0;
  std::vector<float> group_sums;  // Σ (code − zero) of each group, if a weight has offsets

  // Writes the codes of k numbers to `to`, as wide as a panel has them, with `kOffset` added to their bytes.
  template <int kOffset>
  void round(const float* x, int64_t k, const std::vector<Chunk>& chunks, bool paired, Wide* to) {
    Floats lows = {}, highs = {}, difference = {};
    for (int64_t i = 0; i < k; i += kWords) {
      const Floats numbers = load_floats(x + i, k - i);
      lows = numbers < lows ? numbers : lows, highs = numbers > highs ? numbers : highs;
      difference += numbers - numbers;  // NaN if one is not finite
    }
    const float low = least(lows), high = -least(-highs);
    const float range = (high - low) / 255, unit = range == 0 ? 1 : range;
    if (std::isfinite(unit) && sum_of_lanes(difference) == 0) {
      step = unit, zero = static_cast<int>(std::nearbyint(-low / unit)) - 128;
    }
    for (const Chunk& chunk : chunks) {
      Ints sums[2] = {};  // of both groups, if there are two
      for (int i = 0; i < chunk.count; i += kLanes) {
        const float* from = x + chunk.column + i;
        float few[kLanes];
        if (i + kLanes > chunk.count) {
          std::memset(few, 0, sizeof few);
          from = static_cast<const float*>(std::memcpy(few, from, (chunk.count - i) * sizeof *from));
        }
        Ints codes[kQuarters];
        divide(from, codes);
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) {
          codes[q] += zero;
          codes[q] = codes[q] < -128 ? Ints{} - 128 : codes[q];
          codes[q] = codes[q] > 127 ? Ints{} + 127 : codes[q];
          sums[paired && q >= kQuarters / 2] += codes[q] - zero;
        }
        store_narrow(codes, to);
        if (kOffset) store(to, load<Bytes>(to) ^ static_cast<uint8_t>(kOffset));
        to += kLanes;
      }
      if (group_sums.empty()) continue;
      group_sums[chunk.group] += sum_of_lanes(__builtin_convertvector(sums[0], Floats));
      if (paired && chunk.count > kLanes / 2) {
        group_sums[chunk.group + 1] = sum_of_lanes(__builtin_convertvector(sums[1], Floats));
      }
    }
  }

 private:
  static float least(Floats v) {
    float lanes[kWords];
    store(lanes, v);
    for (int half = kWords / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] = lanes[i + half] < lanes[i] ? lanes[i + half] : lanes[i];
    }
    return lanes[0];
  }

  // The integers nearest to kLanes numbers / step. A product is not rounded as a quotient is, which takes
  // longer; so where one is close to the middle of two integers, quotients decide. Of a NaN they do, too.
  JAXMEM_INLINE void divide(const float* numbers, Ints* to) const {
    Ints are_far = Ints{} - 1;
#pragma GCC unroll 4
    for (int q = 0; q < kQuarters; ++q) {
      const Floats product = load<Floats>(numbers + q * kWords) * (1 / step);
      to[q] = nearest(product);
      const Floats rest = product - __builtin_convertvector(to[q], Floats);
      are_far &= (rest < 0.4999f) & (rest > -0.4999f);
    }
    if (!any_lane(~are_far)) return;
    for (int q = 0; q < kQuarters; ++q) to[q] = nearest(load<Floats>(numbers + q * kWords) / step);
  }
};

// x (m, k) so, in panels.
struct RoundedInputs {
  static constexpr bool kRounds = true, kHasRows = false, kHasPanels = true;
  static constexpr int kRows = 4 * kPanelVectors * kWords;  // that a core multiplies with a block of codes

  std::vector<Chunk> chunks;
  std::vector<Piece> pieces;
  std::vector<RoundedRow> rows;
  std::vector<XPanel> panels;

  // `each(count, run)` calls run(i) for i from 0 to `count`.
  template <typename Each>
  RoundedInputs(const float* x, int64_t m, int64_t, const IntegerRows& weight, const Each& each)
      : chunks(chunks_of(weight.k, weight.group, kMostVectors * kLanes)), pieces(pieces_of(chunks, weight.group)), rows(m) {
    constexpr int kPanelRows = kPanelVectors * kWords;
    const int64_t vectors = chunks.empty() ? 0 : chunks.back().vector + vectors_of(chunks.back().count);
    panels.resize((m + kPanelRows - 1) / kPanelRows);
    each(panels.size(), [&](int64_t p) {
      XPanel& panel = panels[p];
      panel.first = p * kPanelRows;
      panel.count = static_cast<int>(std::min<int64_t>(kPanelRows, m - panel.first));
      panel.vectors = (panel.count + kWords - 1) / kWords;
      panel.words.resize(vectors * kVectorWords * panel.vectors);
      std::vector<Wide> codes(8 * vectors * kLanes);
      for (int i = 0; i < panel.count; ++i) {
        RoundedRow& row = rows[panel.first + i];
        row.group_sums.resize(weight.has_offsets() ? weight.groups() : 0);
        row.template round<kXOffset>(x + (panel.first + i) * weight.k, weight.k, chunks, are_paired(weight.group),
                  codes.data() + i % 8 * vectors * kLanes);
        panel.zeros[i / kWords][i % kWords] = row.zero + kXOffset;
        if (i % 8 < 7 && i + 1 < panel.count) continue;
        panel.write(i / 8 * 8, 0, vectors * kVectorWords, [&](int j) {
          return reinterpret_cast<const float*>(codes.data() + j * vectors * kLanes);
        });
      }
    });
  }

 private:
  static constexpr int kMostVectors = 64;
};

#if defined(JAXMEM_DOT_PRODUCT)
// A row of x so, as products with rows of codes read it (see FixedPoint).
template <int kBits>
struct RoundedPoint : RoundedRow {
  using Sums = RoundedSums<kBits>;

  std::vector<RoundedVector> vectors;
  std::vector<Ints> starts;

  void set(const float* x, const IntegerRows& weight, const std::vector<Chunk>& chunks) {
    group_sums.resize(weight.has_offsets() ? weight.groups() : 0);
    if (!chunks.empty()) vectors.resize(chunks.back().vector + vectors_of(chunks.back().count));
    std::vector<int8_t> codes(vectors.size() * kLanes);
    round<0>(x, weight.k, chunks, are_paired(weight.group), codes.data());
    for (size_t v = 0; v < vectors.size(); ++v) {
      std::memcpy(vectors[v].codes, codes.data() + v * kLanes, kLanes);
      std::memset(vectors[v].zeros, zero, kLanes);
    }
    starts.resize(chunks.size());
    for (size_t c = 0; c < chunks.size(); ++c) {
      Sums middles;
      for (int i = 0; i < vectors_of(chunks[c].count); ++i) {
        middles.add_products(Bytes{} + middle_code(kBits), typename Sums::Registers(vectors[chunks[c].vector + i]));
      }
      starts[c] = -middles.integer_lanes();
    }
  }
};
#endif

template <int kBits>
struct RoundedRows;

// Whether few rows of x in 8 bits have a product of their own with codes of so many bits.
constexpr bool has_rounded_rows(int bits) {
#if defined(JAXMEM_DOT_PRODUCT)
  return bits == 8 || bits >= 4 && bits <= 6;
#else
  return false;
#endif
}

#if defined(JAXMEM_DOT_PRODUCT)
// x (m, k) so, of few rows.
template <int kBits>
struct RoundedRows {
  static constexpr bool kRounds = true, kHasRows = true, kHasPanels = false;
  static constexpr int kRows = 4 * kWords;

  std::vector<Chunk> chunks;
  std::vector<RoundedPoint<kBits>> rows;

  template <typename Each>
  RoundedRows(const float* x, int64_t m, int64_t, const IntegerRows& weight, const Each& each)
      : chunks(chunks_of(weight.k, weight.group, RoundedSums<kBits>::kMostVectors * kLanes)), rows(m) {
    each(m, [&](int64_t i) { rows[i].set(x + i * weight.k, weight, chunks); });
  }
};
#endif

}  // namespace jaxmem
