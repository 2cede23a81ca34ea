#include "engine/model/tensor_set.h"

#include <functional>
#include <numeric>
#include <utility>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

std::optional<QuantFormat> format_named(std::string_view name) {
  for (const QuantTraits& traits : quant_formats()) {
    if (traits.name == name) return traits.format;
  }
  return std::nullopt;
}

}  // namespace

void TensorSet::add(StoredTensor tensor) {
  const auto [it, inserted] = tensors_.try_emplace(tensor.name);
  if (!inserted) {
    throw LoadError(tensor.file + ": tensor " + quote(tensor.name) + " is also in " +
                    it->second.file + ", expected it once");
  }
  it->second = std::move(tensor);
}

void TensorSet::add(const GgufFile& file) {
  for (const GgufTensor& tensor : file.tensors()) {
    StoredTensor stored{
        file.name(), std::string(tensor.name), std::string(tensor.type->name), {}, {}, tensor.data};
    if (const QuantTraits* traits = find_ggml_type(tensor.type->id)) stored.format = traits->format;
    stored.shape.assign(tensor.ne.rend() - tensor.num_dims, tensor.ne.rend());
    add(std::move(stored));
  }
}

void TensorSet::add(const SafetensorsFile& file) {
  for (const SafetensorsTensor& tensor : file.tensors()) {
    add({file.name(),
         tensor.name,
         tensor.dtype,
         format_named(tensor.dtype),
         tensor.shape,
         tensor.data});
  }
}

const StoredTensor* TensorSet::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::string describe(const StoredTensor& tensor) {
  return tensor.file + ": tensor " + quote(tensor.name);
}

QuantFormat supported_format(const StoredTensor& tensor) {
  if (tensor.format) return *tensor.format;
  std::string supported;
  for (const QuantTraits& traits : quant_formats()) {
    supported += (supported.empty() ? "" : ", ") + std::string(traits.name);
  }
  throw LoadError(describe(tensor) + " is of type " + tensor.type +
                  ", which is not supported; expected one of " + supported);
}

std::vector<float> decode_tensor(const StoredTensor& tensor) {
  const QuantTraits& traits = quant_traits(supported_format(tensor));
  const auto num_blocks = static_cast<int64_t>(tensor.data.size()) / traits.block_bytes;
  std::vector<float> values(static_cast<size_t>(num_blocks * traits.block_elements));
  traits.decode(tensor.data.data(), num_blocks, values.data());
  return values;
}

}  // namespace headwater
