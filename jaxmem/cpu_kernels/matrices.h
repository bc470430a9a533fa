// Matrices of a batch, as jax.ffi gives them to a function that jax.vmap maps.
#pragma once

#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxmem {

// The matrices of a buffer (*batch, rows, columns), where an axis of the batch may have the size 1.
struct Matrices {
  const uint8_t* data;
  ffi::AnyBuffer::Dimensions sizes;
  int64_t bytes;  // of a matrix

  explicit Matrices(const ffi::AnyBuffer& buffer)
      : data(static_cast<const uint8_t*>(buffer.untyped_data())), sizes(buffer.dimensions()) {
    const auto rank = sizes.size();
    bytes = sizes[rank - 2] * sizes[rank - 1] * ffi::ByteWidth(buffer.element_type());
  }

  bool is_single() const {
    int64_t count = 1;
    for (size_t a = 0; a + 2 < sizes.size(); ++a) count *= sizes[a];
    return count == 1;
  }

  // The matrix of `index` among those of a batch of `batch_sizes`.
  const uint8_t* at(int64_t index, ffi::AnyBuffer::Dimensions batch_sizes) const {
    int64_t place = 0, stride = 1;
    for (size_t a = sizes.size() - 2; a-- > 0;) {
      place += sizes[a] == 1 ? 0 : index % batch_sizes[a] * stride;
      index /= batch_sizes[a];
      stride *= sizes[a];
    }
    return data + place * bytes;
  }
};

}  // namespace jaxmem
