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
  Mapper(const TensorSet& tensors, const WeightRules& rules, LoadedModel& model, Refusals& refusals)
      : tensors_(tensors), rules_(rules), model_(model), refusals_(refusals) {}

  WeightView matrix(const std::string& stem, int64_t rows, int64_t cols) {
    const StoredTensor* tensor = take(stem + ".weight", {rows, cols}, Presence::kRequired);
    if (tensor == nullptr) return {};
    const WeightView view{*tensor->format, rows, cols, tensor->data.data()};
    format_bytes_[static_cast<size_t>(view.format)] += view.bytes();
    return view;
  }
  // One tensor whose rows are those of the parts, one after another.
  void stacked(const std::string& stem,
               int64_t cols,
               std::initializer_list<std::pair<WeightView*, int64_t>> parts) {
    int64_t rows = 0;
    for (const auto& [view, count] : parts) rows += count;
    const WeightView whole = matrix(stem, rows, cols);
    if (whole.data == nullptr) return;
    const auto* data = static_cast<const std::byte*>(whole.data);
    for (const auto& [view, count] : parts) {
      *view = {whole.format, count, cols, data};
      data += view->bytes();
    }
  }
  WeightView norm(const std::string& stem, int64_t size) {
    const WeightView view = vector(stem + ".weight", size, Presence::kRequired);
    if (view.data != nullptr && rules_.norm_offset != 0.0f) {
      for (float& value : model_.owned.back()) value += rules_.norm_offset;
    }
    return view;
  }
  WeightView bias(const std::string& stem, int64_t size, Presence presence) {
    return presence == Presence::kAbsent ? WeightView{} : vector(stem + ".bias", size, presence);
  }
  // An optional bias of one of q, k and v is one of all.
  Presence fused_bias(const std::string& first_stem) const {
    if (rules_.qkv_bias != Presence::kOptional) return rules_.qkv_bias;
    return tensors_.find(first_stem + ".bias") != nullptr ? Presence::kRequired : Presence::kAbsent;
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
    // A tied model may bring its output too: it is the embedding again.
    const std::string tied =
        model_.spec.tied_embedding ? std::string(names.output) + ".weight" : "";
    std::vector<std::string> unused;
    for (const auto& [name, tensor] : tensors_.tensors()) {
      const auto in_name = [&name = name](std::string_view part) {
        return name.find(part) != std::string::npos;
      };
      if (!used_.contains(name) && name != tied &&
          std::none_of(names.ignored.begin(), names.ignored.end(), in_name)) {
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
  const WeightRules& rules_;
  LoadedModel& model_;
  Refusals& refusals_;
  std::map<std::string, std::vector<const StoredTensor*>> unsupported_;  // by type
  std::set<std::string, std::less<>> used_;
  std::vector<std::string> missing_;
  std::array<int64_t, 16> format_bytes_{};  // by QuantFormat
};

void map_attention(Mapper& mapper,
                   const TensorNames& names,
                   const WeightRules& rules,
                   const ModelSpec& spec,
                   size_t layer,
                   LayerWeights& out) {
  const HeadShape& heads = spec.layers[layer].heads;
  const int64_t q_rows = int64_t{heads.num_heads} * heads.head_dim;
  const int64_t kv_rows = int64_t{heads.num_kv_heads} * heads.head_dim;
  const auto named = [layer](std::string_view pattern) { return with_layer(pattern, layer); };
  if (spec.norm_before) out.attn_norm = mapper.norm(named(names.attn_norm), spec.hidden_dim);
  if (!names.qkv.empty()) {
    mapper.stacked(named(names.qkv),
                   spec.hidden_dim,
                   {{&out.q, q_rows}, {&out.k, kv_rows}, {&out.v, kv_rows}});
  } else {
    out.q = mapper.matrix(named(names.q), q_rows, spec.hidden_dim);
    out.k = mapper.matrix(named(names.k), kv_rows, spec.hidden_dim);
    out.v = mapper.matrix(named(names.v), kv_rows, spec.hidden_dim);
    const Presence bias = mapper.fused_bias(named(names.q));
    out.q_bias = mapper.bias(named(names.q), q_rows, bias);
    out.k_bias = mapper.bias(named(names.k), kv_rows, bias);
    out.v_bias = mapper.bias(named(names.v), kv_rows, bias);
  }
  if (spec.qk_norm != QkNorm::kNone) {
    const bool by_head = spec.qk_norm == QkNorm::kHead;
    out.q_norm = mapper.norm(named(names.q_norm), by_head ? heads.head_dim : q_rows);
    out.k_norm = mapper.norm(named(names.k_norm), by_head ? heads.head_dim : kv_rows);
  }
  out.o = mapper.matrix(named(names.o), spec.hidden_dim, q_rows);
  out.o_bias = mapper.bias(named(names.o), spec.hidden_dim, rules.o_bias);
  if (spec.norm_after)
    out.attn_post_norm = mapper.norm(named(names.attn_post_norm), spec.hidden_dim);
}

void map_ffn(Mapper& mapper,
             const TensorNames& names,
             const ModelSpec& spec,
             size_t layer,
             LayerWeights& out) {
  const int64_t ffn_dim = spec.layers[layer].ffn_dim;
  const auto named = [layer](std::string_view pattern) { return with_layer(pattern, layer); };
  if (spec.norm_before) out.ffn_norm = mapper.norm(named(names.ffn_norm), spec.hidden_dim);
  if (!names.gate_up.empty()) {
    mapper.stacked(
        named(names.gate_up), spec.hidden_dim, {{&out.gate, ffn_dim}, {&out.up, ffn_dim}});
  } else {
    out.gate = mapper.matrix(named(names.gate), ffn_dim, spec.hidden_dim);
    out.up = mapper.matrix(named(names.up), ffn_dim, spec.hidden_dim);
  }
  out.down = mapper.matrix(named(names.down), spec.hidden_dim, ffn_dim);
  if (spec.norm_after) out.ffn_post_norm = mapper.norm(named(names.ffn_post_norm), spec.hidden_dim);
}

}  // namespace

void map_weights(const TensorSet& tensors,
                 const TensorNames& names,
                 const WeightRules& rules,
                 LoadedModel& model,
                 Refusals& refusals) {
  const ModelSpec& spec = model.spec;
  ModelWeights& weights = model.weights;
  Mapper mapper(tensors, rules, model, refusals);
  weights.token_embedding =
      mapper.matrix(std::string(names.token_embedding), spec.vocab_size, spec.hidden_dim);
  weights.output_norm = mapper.norm(std::string(names.output_norm), spec.hidden_dim);
  weights.output = spec.tied_embedding
                       ? weights.token_embedding
                       : mapper.matrix(std::string(names.output), spec.vocab_size, spec.hidden_dim);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    LayerWeights& out = weights.layers.emplace_back();
    map_attention(mapper, names, rules, spec, i, out);
    map_ffn(mapper, names, spec, i, out);
  }
  mapper.check_complete(names);
  model.weight_format = mapper.formats();
}

}  // namespace headwater
