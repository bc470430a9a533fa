// Bit fields of packed codes, as codecs/packing.py defines them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace jaxmem {

struct Field {
  int width, shift;  // bits of the field, and their place in the code
};

// The fields of codes of `bits` bits: those of the widths 4, 2 and 1 that the bits add up to.
constexpr int field_count(int bits) {
  return bits == 8 ? 1 : (bits >> 2 & 1) + (bits >> 1 & 1) + (bits & 1);
}

constexpr Field field(int bits, int index) {
  if (bits == 8) return {8, 0};
  int shift = 0;
  for (int width = 4; width > 0; width /= 2) {
    if (!(bits & width)) continue;
    if (index-- == 0) return {width, shift};
    shift += width;
  }
  return {0, 0};
}

constexpr int64_t packed_size(int64_t count, int width) { return (count * width + 7) / 8; }

// kLanes bytes from `from`; those from `count` on are 0 and are not read, if kWhole is false.
template <bool kWhole>
JAXMEM_INLINE Bytes load_bytes(const uint8_t* from, int count) {
  if (kWhole || count >= kLanes) return load<Bytes>(from);
  Bytes bytes = {};
  std::memcpy(&bytes, from, count);
  return bytes;
}

// The bits of each byte, moved kLeft places to higher ones, of which those of kMask stay.
template <int kLeft, uint8_t kMask>
JAXMEM_INLINE Bytes moved(Bytes bytes) {
#if defined(JAXMEM_AVX512) && defined(__GFNI__)
  if constexpr (kLeft != 0) {  // one instruction: bit i is the parity of the byte and the matrix's byte 7 − i
    constexpr auto bit = [](int i) {
      const int from = i - kLeft;
      return kMask >> i & 1 && from >= 0 && from < 8 ? uint64_t{1} << (8 * (7 - i) + from) : 0;
    };
    constexpr uint64_t kMatrix = bit(0) | bit(1) | bit(2) | bit(3) | bit(4) | bit(5) | bit(6) | bit(7);
    return (Bytes)_mm512_gf2p8affine_epi64_epi8((__m512i)bytes, _mm512_set1_epi64(kMatrix), 0);
  }
#endif
  if constexpr (kLeft > 0) bytes = (Bytes)((Shorts)bytes << kLeft);  // the mask takes what crosses over
  if constexpr (kLeft < 0) bytes = (Bytes)((Shorts)bytes >> -kLeft);
  return kMask == 255 ? bytes : bytes & kMask;
}

// The codes of row kRow of 8 rows in kLanes columns, of which `count` are there. The bytes of the 8
// rows begin at `fields`; a row of bytes has `stride` bytes.
template <int kBits, int kRow, bool kWhole, int kField = 0>
JAXMEM_INLINE Bytes unpack(const uint8_t* const* fields, int64_t stride, int64_t column, int count) {
  constexpr Field kLayout = field(kBits, kField);
  constexpr int kPlace = kRow * kLayout.width % 8, kLeft = kLayout.shift - kPlace;
  constexpr uint8_t kMask = static_cast<uint8_t>(((1 << kLayout.width) - 1) << kLayout.shift);
  const uint8_t* from = fields[kField] + kRow * kLayout.width / 8 * stride + column;
  if constexpr (kPlace == 0) fetch_ahead(from, kLayout.width);
  Bytes part = load_bytes<kWhole>(from, count);
  part = moved<kLeft, kMask>(part);
  if constexpr (kField + 1 == field_count(kBits)) return part;
  else return part | unpack<kBits, kRow, kWhole, kField + 1>(fields, stride, column, count);
}

// 8 numbers of kWidth bits, the lowest first, as 8 bytes.
template <int kWidth>
inline uint64_t spread(uint64_t packed) {
  if (kWidth == 8) return packed;
  constexpr uint64_t kMask = 0x0101010101010101u * ((1u << kWidth) - 1);
#if defined(__BMI2__)
  return _pdep_u64(packed, kMask);
#else
  uint64_t bytes = 0;
  for (int i = 0; i < 8; ++i) bytes |= (packed >> i * kWidth & ((1u << kWidth) - 1)) << 8 * i;
  return bytes;
#endif
}

// Calls run(std::integral_constant<int, bits>) for bits from 2 to 8.
template <typename Run>
void with_bits(int bits, const Run& run) {
  switch (bits) {
    case 2: return run(std::integral_constant<int, 2>{});
    case 3: return run(std::integral_constant<int, 3>{});
    case 4: return run(std::integral_constant<int, 4>{});
    case 5: return run(std::integral_constant<int, 5>{});
    case 6: return run(std::integral_constant<int, 6>{});
    case 7: return run(std::integral_constant<int, 7>{});
    default: return run(std::integral_constant<int, 8>{});
  }
}

}  // namespace jaxmem
