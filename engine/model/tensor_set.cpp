#include "engine/model/tensor_set.h"

#include <functional>
#include <numeric>
#include <utility>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// Of a safetensors dtype: none of them has blocks.
std::optional<QuantFormat> format_named(std::string_view name) {
  for (const QuantTraits& traits : quant_formats()) {
    if (traits.block_elements == 1 && traits.name == name) return traits.format;
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
    StoredTensor stored;
    stored.file = file.name();
    stored.name = tensor.name;
    stored.num_bytes = tensor.num_bytes;
    stored.data = tensor.data;
    stored.shape.assign(tensor.ne.rend() - tensor.num_dims, tensor.ne.rend());
    if (tensor.type != nullptr) {
      stored.type = tensor.type->name;
      stored.ggml_type = tensor.type->id;
      if (const QuantTraits* traits = find_ggml_type(tensor.type->id)) {
        stored.format = traits->format;
      }
    }
    add(std::move(stored));
  }
}

void TensorSet::add(const SafetensorsFile& file) {
  for (const SafetensorsTensor& tensor : file.tensors()) {
    StoredTensor stored;
    stored.file = file.name();
    stored.name = tensor.name;
    stored.type = tensor.dtype;
    stored.format = format_named(tensor.dtype);
    stored.shape = tensor.shape;
    stored.num_bytes = tensor.num_bytes;
    stored.data = tensor.data;
    add(std::move(stored));
  }
}

void TensorSet::rename(std::string_view from, std::string_view to) {
  std::vector<StoredTensor> renamed;
  for (auto it = tensors_.lower_bound(from); it != tensors_.end() && it->first.starts_with(from);) {
    renamed.push_back(std::move(it->second));
    it = tensors_.erase(it);
  }
  for (StoredTensor& tensor : renamed) {
    tensor.name = std::string(to) + tensor.name.substr(from.size());
    add(std::move(tensor));
  }
}

const StoredTensor* TensorSet::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::string describe(const StoredTensor& tensor) {
  return tensor.file + ": tensor " + quote(tensor.name);
}

std::string unsupported_type(const StoredTensor& tensor, int64_t num_more) {
  const bool is_gguf = tensor.ggml_type >= 0;
  std::string supported;
  for (const QuantTraits& traits : quant_formats()) {
    if (!is_gguf && traits.block_elements > 1) continue;
    supported += (supported.empty() ? "" : ", ") + std::string(traits.name);
  }
  const std::string number = is_gguf ? " (id " + std::to_string(tensor.ggml_type) + ")" : "";
  const std::string more =
      num_more > 0 ? " (nor for " + std::to_string(num_more) + " further tensors)" : "";
  return describe(tensor) + " is of type " + tensor.type + number + ", which is not supported" +
         more + "; expected one of " + supported +
         (is_gguf ? ": get the model as a Q4_K_M or Q8_0 file, or make one with llama-quantize"
                  : ": get the model's BF16 weights, or a GGUF file of it");
}

QuantFormat supported_format(const StoredTensor& tensor) {
  if (!tensor.format) throw LoadError(unsupported_type(tensor));
  return *tensor.format;
}

std::vector<float> decode_tensor(const StoredTensor& tensor) {
  const QuantTraits& traits = quant_traits(supported_format(tensor));
  const auto num_blocks = static_cast<int64_t>(tensor.data.size()) / traits.block_bytes;
  std::vector<float> values(static_cast<size_t>(num_blocks * traits.block_elements));
  traits.decode(tensor.data.data(), num_blocks, values.data());
  return values;
}

}  // namespace headwater
