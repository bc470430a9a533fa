// The product with kept blocks as a function that XLA calls (jax.ffi).
#pragma once

#include <cstdint>

#include "kept_blocks.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxmem {

// y (m, n) of x (m, k). `fields` are those of the codes, (rows · width/8, kept · inputs), then those of the zero
// points, if there are.
inline ffi::Error block_rows(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer scale, ffi::AnyBuffer places,
                             ffi::RemainingArgs fields, ffi::ResultBuffer<ffi::F32> y, int64_t bits, int64_t group,
                             int64_t inputs) {
  const auto sizes = y->dimensions(), strips = places.dimensions(), scales = scale.dimensions();
  const size_t count = bits < 2 || bits > 8 ? 0 : field_count(static_cast<int>(bits));
  const bool half_scale = scale.element_type() == ffi::F16;
  if (count == 0 || group < 1 || inputs < 1 || fields.size() != count && fields.size() != 2 * count ||
      sizes.size() != 2 || strips.size() != 2 || scales.size() != 2 ||
      !half_scale && scale.element_type() != ffi::F32) {
    return ffi::Error::InvalidArgument("no such blocks");
  }
  const int64_t rows = scales[1];
  const KeptBlocks blocks{strips[0], strips[1], inputs, static_cast<const uint8_t*>(places.untyped_data()),
                          static_cast<int64_t>(ffi::ByteWidth(places.element_type()))};
  if (blocks.strips == 0 || blocks.place_bytes > 2 || rows < sizes[1] || rows % (blocks.strips * kDecodedRows)) {
    return ffi::Error::InvalidArgument("wrong shapes of blocks");
  }
  IntegerRows weight{{rows, blocks.kept * inputs, group, scale.untyped_data(), half_scale}, static_cast<int>(bits)};
  for (size_t f = 0; f < fields.size(); ++f) {
    const auto field = fields.get<ffi::AnyBuffer>(f);
    if (field.has_error()) return field.error();
    (f < count ? weight.fields[f] : weight.zeros[f - count]) = static_cast<const uint8_t*>(field->untyped_data());
  }
  blocks_product(pool, weight, blocks, x.typed_data(), sizes[0], x.dimensions()[1], sizes[1], y->typed_data());
  return ffi::Error::Success();
}

}  // namespace jaxmem
