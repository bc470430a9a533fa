// The products of this folder as functions that XLA calls (jax.ffi).
#include <cstdint>
#include <string>

#include "integer_rows.h"
#include "parallel.h"
#include "self_test.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxmem {

constexpr int64_t kPartWeights = 1 << 18;  // weights that are worth a thread

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

template <int kBits>
void multiply(ffi::ThreadPool& pool, const IntegerRows& weight, const float* x, int64_t m, float* y) {
  const Inputs<kBits> inputs(x, m, weight);
  const int64_t threads = pool.num_threads();
  const int64_t most_parts = std::max<int64_t>(1, weight.n * weight.k / kPartWeights);
  const int64_t parts = threads > 1 ? std::min(4 * threads, most_parts) : 1;
  const int64_t rows = (weight.n / parts / kBlockRows + 1) * kBlockRows;
  parallel_for(pool, threads, (weight.n + rows - 1) / rows, [&](int64_t i) {
    integer_product(weight, inputs, i * rows, std::min(weight.n, (i + 1) * rows), y);
  });
}

// y = x · rows^T. `fields` are the fields of the codes, then those of the zero points, if there are.
ffi::Error integer_rows(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer scale,
                        ffi::RemainingArgs fields, ffi::Result<ffi::AnyBuffer> y, int64_t bits,
                        int64_t group) {
  const auto sizes = y->dimensions(), x_sizes = x.dimensions();
  const size_t rank = sizes.size();
  if (bits < 2 || bits > 8 || group < 1) return ffi::Error::InvalidArgument("no such integers");
  const size_t count = field_count(static_cast<int>(bits));
  if (fields.size() != count && fields.size() != 2 * count) {
    return ffi::Error::InvalidArgument("wrong count of fields");
  }
  std::vector<Matrices> packed;
  for (size_t f = 0; f < fields.size(); ++f) {
    const auto field = fields.get<ffi::AnyBuffer>(f);
    if (field.has_error()) return field.error();
    packed.emplace_back(*field);
  }
  const bool half_scale = scale.element_type() == ffi::F16;
  if (!half_scale && scale.element_type() != ffi::F32) {
    return ffi::Error::InvalidArgument("scales are float16 or float32");
  }
  const Matrices inputs(x), scales(scale);
  bool one_weight = scales.is_single();
  for (const Matrices& field : packed) one_weight = one_weight && field.is_single();

  int64_t batch = 1, m = sizes[rank - 2];
  for (size_t a = 0; a + 2 < rank; ++a) batch *= sizes[a];
  if (one_weight) m *= batch, batch = std::min<int64_t>(batch, 1);
  const int64_t n = sizes[rank - 1], k = x_sizes[rank - 1];
  for (int64_t i = 0; i < batch; ++i) {
    IntegerRows weight{static_cast<int>(bits), n, k, group, {}, nullptr, half_scale, {}};
    weight.scale = scales.at(i, sizes);
    for (size_t f = 0; f < packed.size(); ++f) {
      (f < count ? weight.fields[f] : weight.zeros[f - count]) = packed[f].at(i, sizes);
    }
    const float* rows = reinterpret_cast<const float*>(inputs.at(i, sizes));
    float* out = static_cast<float*>(y->untyped_data()) + i * m * n;
    with_bits(weight.bits, [&](auto b) { multiply<decltype(b)::value>(pool, weight, rows, m, out); });
  }
  return ffi::Error::Success();
}

}  // namespace jaxmem

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmem_integer_rows, jaxmem::integer_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("group"));

extern "C" const char* jaxmem_instruction_set() { return jaxmem::instruction_set(); }

// An empty string, or the first product that is wrong on this machine.
extern "C" const char* jaxmem_self_test() {
  static const std::string wrong = jaxmem::self_test();
  return wrong.c_str();
}
