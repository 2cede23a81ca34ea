#include "engine/model/weight_map.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

std::string with_layer(std::string_view pattern, size_t layer) {
  std::string name(pattern);
  const size_t at = name.find("{}");
  if (at != std::string::npos) name.replace(at, 2, std::to_string(layer));
  return name;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

std::string list_text(const std::vector<std::string>& names) {
  constexpr size_t kMaxNamed = 8;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMaxNamed); ++i) {
    text += (i == 0 ? "" : ", ") + quote(names[i]);
  }
  if (names.size() > kMaxNamed) {
    text += " and " + std::to_string(names.size() - kMaxNamed) + " more";
  }
  return text;
}

class Mapper {
 public:
  Mapper(const TensorSet& tensors, LoadedModel& model, Refusals& refusals)
      : tensors_(tensors), model_(model), refusals_(refusals) {}

  WeightView matrix(const std::string& stem, int64_t rows, int64_t cols) {
    const StoredTensor* tensor = take(stem + ".weight", {rows, cols}, Presence::kRequired);
    if (tensor == nullptr) return {};
    const WeightView view{*tensor->format, rows, cols, tensor->data.data()};
    format_bytes_[static_cast<size_t>(view.format)] += view.bytes();
    return view;
  }
  WeightView norm(const std::string& stem, int64_t size) {
    return vector(stem + ".weight", size, Presence::kRequired);
  }
  WeightView bias(const std::string& stem, int64_t size, Presence presence) {
    return presence == Presence::kAbsent ? WeightView{} : vector(stem + ".bias", size, presence);
  }

  void check_complete(const TensorNames& names) const {
    for (const auto& [type, uses] : unsupported_) {
      refusals_.add(unsupported_type(*uses.front(), std::ssize(uses) - 1));
    }
    if (!missing_.empty()) {
      refusals_.add(model_.path + ": architecture " + model_.spec.architecture + " needs " +
                    std::to_string(missing_.size()) +
                    " tensors that are missing: " + list_text(missing_));
    }
    std::vector<std::string> unused;
    for (const auto& [name, tensor] : tensors_.tensors()) {
      const auto ends_name = [&name = name](std::string_view end) { return name.ends_with(end); };
      if (!used_.contains(name) &&
          std::none_of(names.ignored.begin(), names.ignored.end(), ends_name)) {
        unused.push_back(name);
      }
    }
    if (!unused.empty()) {
      refusals_.add(model_.path + ": " + std::to_string(unused.size()) +
                    " tensors have no place in architecture " + model_.spec.architecture +
                    ", so the model would not be computed as trained: " + list_text(unused));
    }
  }

  // "Q4_1 + Q8_0": the formats of the matrices, most bytes first.
  std::string formats() const {
    std::vector<std::pair<int64_t, std::string_view>> found;
    for (const QuantTraits& traits : quant_formats()) {
      const int64_t bytes = format_bytes_[static_cast<size_t>(traits.format)];
      if (bytes > 0) found.emplace_back(-bytes, traits.name);
    }
    std::sort(found.begin(), found.end());
    std::string text;
    for (const auto& [bytes, name] : found) text += (text.empty() ? "" : " + ") + std::string(name);
    return text;
  }

 private:
  const StoredTensor* take(const std::string& name,
                           const std::vector<int64_t>& shape,
                           Presence presence) {
    const StoredTensor* tensor = tensors_.find(name);
    if (tensor == nullptr) {
      if (presence == Presence::kRequired) missing_.push_back(name);
      return nullptr;
    }
    used_.insert(name);
    if (tensor->shape != shape) {
      refusals_.add(describe(*tensor) + " has shape " + shape_text(tensor->shape) + ", expected " +
                    shape_text(shape) + " by the model's configuration");
      return nullptr;
    }
    if (!tensor->format) {
      if (!tensor->type.empty()) unsupported_[tensor->type].push_back(tensor);
      return nullptr;
    }
    int64_t elements = 1;
    for (const int64_t size : shape) elements *= size;
    model_.num_parameters += elements;
    model_.weight_bytes += tensor->num_bytes;
    return tensor;
  }

  WeightView vector(const std::string& name, int64_t size, Presence presence) {
    const StoredTensor* tensor = take(name, {size}, presence);
    if (tensor == nullptr) return {};
    model_.owned.push_back(decode_tensor(*tensor));
    return {QuantFormat::kF32, 1, size, model_.owned.back().data()};
  }

  const TensorSet& tensors_;
  LoadedModel& model_;
  Refusals& refusals_;
  std::map<std::string, std::vector<const StoredTensor*>> unsupported_;  // by type
  std::set<std::string, std::less<>> used_;
  std::vector<std::string> missing_;
  std::array<int64_t, 16> format_bytes_{};  // by QuantFormat
};

}  // namespace

void map_weights(const TensorSet& tensors,
                 const TensorNames& names,
                 Presence attention_bias,
                 LoadedModel& model,
                 Refusals& refusals) {
  const ModelSpec& spec = model.spec;
  ModelWeights& weights = model.weights;
  Mapper mapper(tensors, model, refusals);
  weights.token_embedding =
      mapper.matrix(std::string(names.token_embedding), spec.vocab_size, spec.hidden_dim);
  weights.output_norm = mapper.norm(std::string(names.output_norm), spec.hidden_dim);
  weights.output = spec.tied_embedding
                       ? weights.token_embedding
                       : mapper.matrix(std::string(names.output), spec.vocab_size, spec.hidden_dim);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const int64_t q_rows = int64_t{layer.heads.num_heads} * layer.heads.head_dim;
    const int64_t kv_rows = int64_t{layer.heads.num_kv_heads} * layer.heads.head_dim;
    const auto named = [i](std::string_view pattern) { return with_layer(pattern, i); };
    LayerWeights& out = weights.layers.emplace_back();
    out.attn_norm = mapper.norm(named(names.attn_norm), spec.hidden_dim);
    out.q = mapper.matrix(named(names.q), q_rows, spec.hidden_dim);
    out.k = mapper.matrix(named(names.k), kv_rows, spec.hidden_dim);
    out.v = mapper.matrix(named(names.v), kv_rows, spec.hidden_dim);
    out.o = mapper.matrix(named(names.o), spec.hidden_dim, q_rows);
    out.q_bias = mapper.bias(named(names.q), q_rows, attention_bias);
    out.k_bias = mapper.bias(named(names.k), kv_rows, attention_bias);
    out.v_bias = mapper.bias(named(names.v), kv_rows, attention_bias);
    out.o_bias = mapper.bias(named(names.o), spec.hidden_dim, attention_bias);
    out.ffn_norm = mapper.norm(named(names.ffn_norm), spec.hidden_dim);
    out.gate = mapper.matrix(named(names.gate), layer.ffn_dim, spec.hidden_dim);
    out.up = mapper.matrix(named(names.up), layer.ffn_dim, spec.hidden_dim);
    out.down = mapper.matrix(named(names.down), spec.hidden_dim, layer.ffn_dim);
  }
  mapper.check_complete(names);
  model.weight_format = mapper.formats();
}

}  // namespace headwater
