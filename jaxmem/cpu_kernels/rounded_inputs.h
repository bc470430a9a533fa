// Rows of x in 8 bits, each with a range of its own: x ≈ step · (code − zero), codes from −128 to 127.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
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

  // Writes the words of k numbers to `to`, each `stride` words after the last.
  void round(const float* x, int64_t k, const std::vector<Chunk>& chunks, bool paired, int32_t* to,
             int64_t stride) {
    Floats lows = {}, highs = {}, difference = {};
    for (int64_t i = 0; i < k; i += kWords) {
      const Floats numbers = load_floats(x + i, k - i);
      lows = numbers < lows ? numbers : lows, highs = numbers > highs ? numbers : highs;
      difference += numbers - numbers;  // NaN if one is not finite
    }
    float low = 0, high = 0;
    for (int lane = 0; lane < kWords; ++lane) low = std::min(low, lows[lane]), high = std::max(high, highs[lane]);
    const float range = (high - low) / 255, unit = range == 0 ? 1 : range;
    if (std::isfinite(unit) && sum_of_lanes(difference) == 0) {
      step = unit, zero = static_cast<int>(std::nearbyint(-low / unit)) - 128;
    }
    for (const Chunk& chunk : chunks) {
      Ints sums[2] = {};  // of both groups, if there are two
      for (int i = 0; i < chunk.count; i += kLanes) {
        Ints codes[kQuarters];
#pragma GCC unroll 4
        for (int q = 0; q < kQuarters; ++q) codes[q] = Ints{} + zero;
        if (!std::isnan(step)) {
          for (int q = 0; q < kQuarters; ++q) {
            const int place = i + q * kWords;
            if (place >= chunk.count) break;
            codes[q] += nearest(load_floats(x + chunk.column + place, chunk.count - place) / step);
            codes[q] = codes[q] < -128 ? Ints{} - 128 : codes[q];
            codes[q] = codes[q] > 127 ? Ints{} + 127 : codes[q];
            sums[paired && q >= kQuarters / 2] += codes[q] - zero;
          }
        }
        Wide wide[kLanes];
        store_narrow(codes, wide);
        for (int w = 0; w < kVectorWords; ++w, to += stride) {
          int32_t word;
          std::memcpy(&word, wide + w * kWordColumns, 4);
          *to = word ^ (kXOffset ? 0x80808080 : 0);
        }
      }
      if (group_sums.empty()) continue;
      group_sums[chunk.group] += sum_of_lanes(__builtin_convertvector(sums[0], Floats));
      if (paired && chunk.count > kLanes / 2) {
        group_sums[chunk.group + 1] = sum_of_lanes(__builtin_convertvector(sums[1], Floats));
      }
    }
  }
};

// x (m, k) so, in panels.
struct RoundedInputs {
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
      for (int i = 0; i < panel.count; ++i) {
        RoundedRow& row = rows[panel.first + i];
        row.group_sums.resize(weight.has_offsets() ? weight.groups() : 0);
        row.round(x + (panel.first + i) * weight.k, weight.k, chunks, are_paired(weight.group),
                  panel.lane(i), panel.vectors * kWords);
        panel.zeros[i / kWords][i % kWords] = row.zero + kXOffset;
      }
    });
  }

 private:
  static constexpr int kMostVectors = 64;
};

}  // namespace jaxmem
