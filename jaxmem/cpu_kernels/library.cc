// The products of this folder as functions that XLA calls (jax.ffi).
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "attended_row.h"
#include "block_rows.h"
#include "integer_rows.h"
#include "large_pages.h"
#include "matrices.h"
#include "parallel.h"
#include "scaled_rows.h"
#include "self_test.h"
#include "xla/ffi/api/ffi.h"

namespace jaxmem {

constexpr int64_t kPanelRows = 8;             // of x in 8 bits, from which on panels are faster
constexpr int64_t kBatches = 8;               // of rows of x that are read together

// y (m, n) by integer_product<kBits>, where x is read as `Inputs`.
template <int kBits, typename Inputs>
void multiply(ffi::ThreadPool& pool, const IntegerRows& weight, const float* x, int64_t m, float* y) {
  const auto each = [&](int64_t count, const auto& run) { parallel_for(pool, pool.num_threads(), count, run); };
  weight.fetch_first();
  for (int64_t begin = 0; begin < m; begin += kBatches * Inputs::kRows) {
    std::vector<Inputs> inputs;
    for (int64_t i = begin; i < std::min(m, begin + kBatches * Inputs::kRows); i += Inputs::kRows) {
      inputs.emplace_back(x + i * weight.k, std::min<int64_t>(Inputs::kRows, m - i), m, weight, each);
    }
    for_rows(pool, inputs.size(), weight.n, weight.k, [&](int64_t batch, int64_t first, int64_t last) {
      const int64_t row = begin + batch * Inputs::kRows;
      integer_product<kBits>(weight, inputs[batch], first, last, y + row * weight.n);
    });
  }
}

// y = x · rows^T. `arrays` are the fields of the codes, then those of the zero points, if there are, then
// those of the patterns, if 2 of every 4 columns are kept, then what the smallest code of each group means,
// if `has_low`. If `scale_bits` is not 0, scales (and what smallest codes mean) are codes of so many bits,
// whose units stand in their place; their fields come next. If all these are stacks of layers, the last of
// `arrays` is the layer, (1, 1) int32. If `rounds`, x is rounded to 8 bits first.
ffi::Error integer_rows(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer scale,
                        ffi::RemainingArgs arrays, ffi::Result<ffi::AnyBuffer> y, int64_t bits,
                        int64_t group, bool is_kept, bool has_low, int64_t scale_bits, int64_t scale_middle,
                        int64_t scale_group, bool in_stack, bool rounds) {
  const auto sizes = y->dimensions(), x_sizes = x.dimensions();
  const size_t rank = sizes.size();
  const bool coded = scale_bits != 0;
  if (bits < 2 || bits > 8 || group < 1 || is_kept && (rounds || !has_kept_columns(bits)) ||
      coded && (scale_bits != 4 && scale_bits != 6 && scale_bits != 8 || scale_group < 1)) {
    return ffi::Error::InvalidArgument("no such integers");
  }
  const size_t count = field_count(static_cast<int>(bits)), lows = has_low ? 1 : 0;
  const size_t scale_fields = coded ? field_count(static_cast<int>(scale_bits)) : 0;
  const size_t size = arrays.size() - (in_stack ? 1 : 0);          // without the layer
  const size_t plain = size - scale_fields * (1 + lows);           // without fields of scales
  const size_t low = plain - lows, last = low - (is_kept ? 2 : 0);  // where these begin
  if (last != count && (is_kept || has_low || coded || last != 2 * count)) {
    return ffi::Error::InvalidArgument("wrong count of fields");
  }
  std::vector<Matrices> packed;
  for (size_t f = 0; f < arrays.size(); ++f) {
    const auto array = arrays.get<ffi::AnyBuffer>(f);
    if (array.has_error()) return array.error();
    packed.emplace_back(*array, in_stack && f < size);
    if (f < count) use_large_pages(array->untyped_data(), array->size_bytes(), packed[f].layers);
    if (has_low && f == low && array->element_type() != scale.element_type()) {
      return ffi::Error::InvalidArgument("scales and smallest values differ in type");
    }
  }
  const bool half_scale = scale.element_type() == ffi::F16;
  if (!half_scale && (coded || scale.element_type() != ffi::F32)) {
    return ffi::Error::InvalidArgument("scales are float16 or float32, and units float16");
  }
  const Matrices inputs(x), scales(scale, in_stack);
  bool one_weight = scales.is_single();
  for (const Matrices& array : packed) one_weight = one_weight && array.is_single();

  int64_t batch = 1, m = sizes[rank - 2];
  for (size_t a = 0; a + 2 < rank; ++a) batch *= sizes[a];
  if (one_weight) m *= batch, batch = std::min<int64_t>(batch, 1);
  const int64_t n = sizes[rank - 1], k = x_sizes[rank - 1];
  parallel_for(pool, pool.num_threads(), batch, [&](int64_t i) {
    const int64_t layer = in_stack ? *reinterpret_cast<const int32_t*>(packed[size].at(i, sizes)) : 0;
    const auto at = [&](size_t array) { return packed[array].at(i, sizes, layer); };
    const uint8_t* own = scales.at(i, sizes, layer);
    IntegerRows weight{{n, k, group, own, half_scale}, static_cast<int>(bits)};
    for (size_t f = 0; f < low; ++f) {
      const uint8_t** to = f < count ? weight.fields : f < last ? weight.zeros - count : weight.patterns - last;
      to[f] = at(f);
    }
    if (has_low) weight.low = at(low);
    if (coded) {
      const auto codes = [&](const uint8_t* units, size_t first) {
        CodedNumbers numbers{static_cast<int>(scale_bits), static_cast<int>(scale_middle), scale_group, units};
        for (size_t f = 0; f < scale_fields; ++f) numbers.fields[f] = at(first + f);
        return numbers;
      };
      weight.scale_codes = codes(own, plain);
      if (has_low) weight.low_codes = codes(at(low), plain + scale_fields);
      weight.scale = weight.low = nullptr;
    }
    const float* rows = reinterpret_cast<const float*>(inputs.at(i, sizes));
    float* out = static_cast<float*>(y->untyped_data()) + i * m * n;
    with_bits(weight.bits, [&](auto b) {
      constexpr int kBits = decltype(b)::value;
      if constexpr (has_rounded_rows(kBits)) {
        if (rounds && m < kPanelRows) return multiply<kBits, RoundedRows<kBits>>(pool, weight, rows, m, out);
      }
      if (rounds) multiply<kBits, RoundedInputs>(pool, weight, rows, m, out);
      else if (are_decoded(weight, m)) multiply<kBits, InputTiles>(pool, weight, rows, m, out);
      else multiply<kBits, Inputs<kBits>>(pool, weight, rows, m, out);
    });
  });
  return ffi::Error::Success();
}

// y = x · rows^T. `levels` are the values of 16 codes of 4 bits; none for floats of 8 bits. If there is a
// `layers`, scales and codes are stacks of layers, and it is the layer, (1, 1) int32.
ffi::Error scaled_rows(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer scale,
                       ffi::AnyBuffer codes, ffi::RemainingArgs layers, ffi::Result<ffi::AnyBuffer> y,
                       ffi::Span<const float> levels, int64_t exponent_bits, int64_t group,
                       float unit) {
  const auto sizes = y->dimensions(), x_sizes = x.dimensions();
  const size_t rank = sizes.size();
  const bool has_levels = levels.size() == 16;
  if (group < 1 || !has_levels && exponent_bits != 4 && exponent_bits != 5) {
    return ffi::Error::InvalidArgument("no such codes");
  }
  const bool half_scale = scale.element_type() == ffi::F16;
  if (!half_scale && scale.element_type() != ffi::F32) {
    return ffi::Error::InvalidArgument("scales are float16 or float32");
  }
  const bool in_stack = layers.size() > 0;
  const auto layer_operand = layers.get<ffi::AnyBuffer>(0);
  if (in_stack && layer_operand.has_error()) return layer_operand.error();
  const Matrices inputs(x), scales(scale, in_stack), packed(codes, in_stack);
  const Matrices places(in_stack ? *layer_operand : x);
  use_large_pages(codes.untyped_data(), codes.size_bytes(), packed.layers);
  int64_t batch = 1, m = sizes[rank - 2];
  for (size_t a = 0; a + 2 < rank; ++a) batch *= sizes[a];
  if (scales.is_single() && packed.is_single() && (!in_stack || places.is_single())) m *= batch, batch = std::min<int64_t>(batch, 1);
  const int64_t n = sizes[rank - 1], k = x_sizes[rank - 1];
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t layer = in_stack ? *reinterpret_cast<const int32_t*>(places.at(i, sizes)) : 0;
    const ScaledRows weight{{n, k, group, scales.at(i, sizes, layer), half_scale}, unit, has_levels ? 4 : 8,
                            static_cast<int>(exponent_bits), levels.begin(), packed.at(i, sizes, layer)};
    const float* rows = reinterpret_cast<const float*>(inputs.at(i, sizes));
    float* out = static_cast<float*>(y->untyped_data()) + i * m * n;
    const auto run = [&](const auto& x, float* y) {
      for_rows(pool, 1, n, k, [&](int64_t, int64_t first, int64_t last) { scaled_product(weight, x, m, first, last, y); });
    };
    if (m < 32) {
      with_inputs(weight, rows, m, [&](const auto& x) { run(x, out); });
      continue;
    }
    for (int64_t first = 0; first < m; first += InputTiles::kRows) {
      const int64_t count = std::min<int64_t>(InputTiles::kRows, m - first);
      run(InputTiles(rows + first * k, count, m, weight, [&](int64_t count, const auto& run) {
            parallel_for(pool, pool.num_threads(), count, run);
          }), out + first * n);
    }
  }
  return ffi::Error::Success();
}

// Attention of q (batch, heads, 1, width) over a layer of keys and values (layers, batch, heads of keys,
// length, width). `places` are the layer, the position of q, and the tokens that it sees.
ffi::Error attended_row(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> keys,
                        ffi::Buffer<ffi::F32> values, ffi::Buffer<ffi::S32> places,
                        ffi::ResultBuffer<ffi::F32> y, float scale) {
  const auto sizes = q.dimensions(), stack = keys.dimensions();
  if (sizes.size() != 4 || sizes[2] != 1 || stack.size() != 5 ||
      !std::equal(stack.begin(), stack.end(), values.dimensions().begin(), values.dimensions().end()) ||
      stack[1] != sizes[0] || stack[4] != sizes[3] || stack[2] == 0 || sizes[1] % stack[2] ||
      places.element_count() != 3) {
    return ffi::Error::InvalidArgument("wrong shapes of queries, keys and values");
  }
  const int64_t layers = stack[0], shared = stack[2], length = stack[3], width = stack[4];
  const int64_t heads = sizes[1] / shared, count = sizes[0] * shared;
  if (layers == 0 || length == 0) return ffi::Error::InvalidArgument("no keys");
  const int32_t* place = places.typed_data();
  const int64_t layer = std::clamp<int64_t>(place[0], 0, layers - 1);
  const int64_t last = std::clamp<int64_t>(place[1], 0, length - 1) + 1;
  const int64_t first = std::max<int64_t>(0, last - std::max<int64_t>(1, place[2]));
  const int64_t work = (last - first) * width * heads * count;
  parallel_for(pool, work > kPartWeights ? pool.num_threads() : 1, count, [&](int64_t i) {
    const int64_t start = (layer * count + i) * length * width, row = i * heads * width;
    attend_row(q.typed_data() + row, heads, [&](int64_t s) { return keys.typed_data() + start + s * width; },
               [&](int64_t s) { return values.typed_data() + start + s * width; }, first, last, width, scale,
               y->typed_data() + row);
  });
  return ffi::Error::Success();
}

// Attention of q (batch, heads, 1, width) over a layer of pages. `table` (batch, columns) has the pages of
// each row. `ends` (batch) are its tokens, and 0 gives y = 0. `places` are the layer and the tokens that a
// query sees. `stores` are, of each extent, keys and values (layers, pages, heads of keys, tokens, width); or
// keys (..., 2 width) that have the value of a token after its key, and no values. Pages are numbered through
// the extents, without the first page of each.
ffi::Error attended_pages(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::S32> table,
                          ffi::Buffer<ffi::S32> ends, ffi::Buffer<ffi::S32> places, ffi::RemainingArgs stores,
                          ffi::ResultBuffer<ffi::F32> y, bool beside, float scale) {
  struct Extent {
    const float *keys, *values;
    int64_t pages;
  };
  const auto sizes = q.dimensions(), columns = table.dimensions();
  const size_t each = beside ? 1 : 2;
  if (sizes.size() != 4 || sizes[2] != 1 || columns.size() != 2 || columns[0] != sizes[0] ||
      ends.element_count() != static_cast<size_t>(sizes[0]) || places.element_count() != 2 || stores.size() == 0 ||
      stores.size() % each) {
    return ffi::Error::InvalidArgument("wrong shapes of queries and table");
  }
  const int64_t width = sizes[3];
  std::vector<Extent> extents;
  std::vector<int64_t> shape;
  for (size_t i = 0; i < stores.size(); ++i) {
    const auto array = stores.get<ffi::Buffer<ffi::F32>>(i);
    if (array.has_error()) return array.error();
    std::vector<int64_t> own(array->dimensions().begin(), array->dimensions().end());
    if (own.size() != 5 || std::count(own.begin(), own.end(), 0) || own[4] != (beside ? 2 : 1) * width) {
      return ffi::Error::InvalidArgument("wrong shapes of pages");
    }
    const float* data = array->typed_data();
    if (i % each == 0) extents.push_back({data, data + width, own[1]});
    else extents.back().values = data;
    if (i % each == 0 && !shape.empty()) shape[1] = own[1];
    if (!shape.empty() && own != shape) return ffi::Error::InvalidArgument("pages differ in shape");
    shape = own;
  }
  const int64_t shared = shape[2], size = shape[3], row_size = shape[4];
  if (sizes[1] % shared) return ffi::Error::InvalidArgument("wrong number of heads");
  const int64_t heads = sizes[1] / shared, count = sizes[0] * shared;
  const int64_t layer = std::clamp<int64_t>(places.typed_data()[0], 0, shape[0] - 1);
  const int64_t window = std::max<int64_t>(1, places.typed_data()[1]);
  int64_t longest = 0;
  for (int64_t row = 0; row < sizes[0]; ++row) longest = std::max<int64_t>(longest, ends.typed_data()[row]);
  const int64_t work = longest * width * heads * count;
  parallel_for(pool, work > kPartWeights ? pool.num_threads() : 1, count, [&](int64_t i) {
    const int64_t row = i / shared, head = i % shared;
    const int64_t last = std::clamp<int64_t>(ends.typed_data()[row], 0, columns[1] * size);
    const int64_t first = std::max<int64_t>(0, last - window);
    float* out = y->typed_data() + i * heads * width;
    if (last == 0) return std::fill(out, out + heads * width, 0.0f);
    const int32_t* of_row = table.typed_data() + row * columns[1];
    std::vector<const float*> keys(last - first), values(last - first);  // of each token
    for (int64_t s = first; s < last;) {
      int64_t page = std::max<int64_t>(of_row[s / size], 0);
      const Extent* extent = extents.data();
      for (; page >= extent->pages && extent != &extents.back(); ++extent) page -= extent->pages - 1;
      page = std::min(page, extent->pages - 1);
      int64_t at = (((layer * extent->pages + page) * shared + head) * size + s % size) * row_size;
      for (const int64_t end = std::min(last, (s / size + 1) * size); s < end; ++s, at += row_size) {
        keys[s - first] = extent->keys + at;
        values[s - first] = extent->values + at;
      }
    }
    attend_row(q.typed_data() + i * heads * width, heads, [&](int64_t s) { return keys[s - first]; },
               [&](int64_t s) { return values[s - first]; }, first, last, width, scale, out);
  });
  return ffi::Error::Success();
}

}  // namespace jaxmem

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmem_attended_row, jaxmem::attended_row,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmem_attended_pages, jaxmem::attended_pages,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("beside")
                                  .Attr<float>("scale"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmem_block_rows, jaxmem::block_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("group")
                                  .Attr<int64_t>("inputs"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmem_integer_rows, jaxmem::integer_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("group")
                                  .Attr<bool>("is_kept")
                                  .Attr<bool>("has_low")
                                  .Attr<int64_t>("scale_bits")
                                  .Attr<int64_t>("scale_middle")
                                  .Attr<int64_t>("scale_group")
                                  .Attr<bool>("in_stack")
                                  .Attr<bool>("rounds"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmem_scaled_rows, jaxmem::scaled_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const float>>("levels")
                                  .Attr<int64_t>("exponent_bits")
                                  .Attr<int64_t>("group")
                                  .Attr<float>("unit"));

extern "C" const char* jaxmem_instruction_set() { return jaxmem::instruction_set(); }

// An empty string, or the first product that is wrong on this machine.
extern "C" const char* jaxmem_self_test() {
  static const std::string wrong = jaxmem::self_test();
  return wrong.c_str();
}
