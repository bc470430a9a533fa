// Matrices of a batch, as jax.ffi gives them to a function that jax.vmap maps.
#pragma once

#include <algorithm>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxmem {

// The matrices of a buffer (*batch, rows, columns), where an axis of the batch may have the size 1; or
// those of a stack of layers (*batch, layers, rows, columns).
struct Matrices {
  const uint8_t* data;
  ffi::AnyBuffer::Dimensions sizes;
  int64_t bytes;   // of a matrix
  int64_t layers;  // of a stack
  size_t rank;     // of the batch

  explicit Matrices(const ffi::AnyBuffer& buffer, bool is_stack = false)
      : data(static_cast<const uint8_t*>(buffer.untyped_data())), sizes(buffer.dimensions()),
        rank(sizes.size() - (is_stack ? 3 : 2)) {
    layers = is_stack ? sizes[rank] : 1;
    bytes = sizes[sizes.size() - 2] * sizes[sizes.size() - 1] * ffi::ByteWidth(buffer.element_type());
  }

  bool is_single() const {
    int64_t count = 1;
    for (size_t a = 0; a < rank; ++a) count *= sizes[a];
    return count == 1;
  }

  // The matrix of `index` among those of a batch of `batch_sizes`, of a layer of the stack.
  const uint8_t* at(int64_t index, ffi::AnyBuffer::Dimensions batch_sizes, int64_t layer = 0) const {
    int64_t place = 0, stride = 1;
    for (size_t a = rank; a-- > 0;) {
      place += sizes[a] == 1 ? 0 : index % batch_sizes[a] * stride;
      index /= batch_sizes[a];
      stride *= sizes[a];
    }
    return data + (place * layers + std::clamp<int64_t>(layer, 0, layers - 1)) * bytes;
  }
};

}  // namespace jaxmem
