#include "tests/golden/arch_checkpoint.h"

#include <cmath>
#include <numbers>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/byte_level.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/quantize.h"
#include "tests/support/random.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/tiny_model.h"

namespace headwater::testing {
namespace {

uint64_t seed_of(std::string_view name) {  // FNV-1a, 64 bits
  uint64_t value = 14695981039346656037U;
  for (const char c : name) value = (value ^ static_cast<uint8_t>(c)) * 1099511628211U;
  return value;
}

std::vector<float> values_of(const std::string& name, const Json& tensor) {
  int64_t count = 1;
  for (const int64_t size : tensor.at("shape")) count *= size;
  std::vector<float> values = Random(seed_of(name)).values(count, tensor.at("deviation"));
  for (float& value : values) value += tensor.at("mean").get<float>();
  return values;
}

std::string f32_bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::string byte_level_tokenizer() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[byte_level::character(static_cast<uint8_t>(b))] = b;
  return Json{
      {"version", "1.0"},
      {"added_tokens", Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}}
      .dump();
}

// ---- GGUF, after llama.cpp's conversion

// The text model's part of config.json, under the name of its family.
struct Config {
  Json json;
  std::string arch;  // of the GGUF

  explicit Config(const Json& whole) : json(whole.value("text_config", whole)) {
    arch = json.at("model_type");
    if (arch == "mistral") arch = "llama";
    if (arch == "gemma3_text") arch = "gemma3";
  }
  bool is(std::string_view family) const { return arch.starts_with(family); }
  bool interleaves() const { return is("llama") || is("smollm3") || is("granite"); }
  int32_t heads() const { return json.at("num_attention_heads"); }
  int32_t kv_heads() const { return json.at("num_key_value_heads"); }
  int32_t head_dim() const {
    return json.value("head_dim", json.at("hidden_size").get<int32_t>() / heads());
  }
  bool has(const char* key) const { return json.contains(key) && !json.at(key).is_null(); }
  int32_t max_positions() const { return json.value("max_position_embeddings", 131072); }
};

std::string replaced(std::string name, std::string_view from, std::string_view to) {
  const size_t at = name.find(from);
  if (at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

std::string gguf_name(const Config& config, std::string name) {
  const bool post = config.is("gemma") || config.is("olmo2");
  const std::pair<std::string_view, std::string_view> kNames[] = {
      {"model.embed_tokens", "token_embd"},
      {"lm_head", "output"},
      {"model.norm", "output_norm"},
      {"model.layers", "blk"},
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", post ? "post_attention_norm" : "ffn_norm"},
      {"pre_feedforward_layernorm", "ffn_norm"},
      {"post_feedforward_layernorm", "post_ffw_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.qkv_proj", "attn_qkv"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.gate_up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  };
  for (const auto& [from, to] : kNames) name = replaced(std::move(name), from, to);
  return name;
}

// Rows of a head from halves to adjacent pairs.
std::vector<float> interleaved(const std::vector<float>& values, int64_t cols, int64_t head_dim) {
  std::vector<float> out(values.size());
  const auto rows = static_cast<int64_t>(values.size()) / cols;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t in_head = row % head_dim;
    const int64_t half = in_head / (head_dim / 2);
    const int64_t to = row - in_head + 2 * (in_head % (head_dim / 2)) + half;
    std::copy_n(values.begin() + row * cols, cols, out.begin() + to * cols);
  }
  return out;
}

void add_vector(GgufWriter& file, const char* name, const std::vector<float>& values) {
  file.add_tensor(name, std::vector<int64_t>{std::ssize(values)}, 0, f32_bytes(values));
}

// Llama 3's rule becomes divisors of the frequencies.
std::vector<float> llama3_divisors(const Json& rope, double base, int32_t head_dim) {
  std::vector<float> divisors;
  const double factor = rope.at("factor"), original = rope.at("original_max_position_embeddings");
  const double low = rope.at("low_freq_factor"), high = rope.at("high_freq_factor");
  for (int32_t i = 0; i < head_dim; i += 2) {
    const double wavelength = 2 * std::numbers::pi * std::pow(base, double(i) / head_dim);
    double divisor = 1;
    if (wavelength > original / low) {
      divisor = factor;
    } else if (wavelength >= original / high) {
      const double smooth = (original / wavelength - low) / (high - low);
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    divisors.push_back(static_cast<float>(divisor));
  }
  return divisors;
}

class Metadata {
 public:
  Metadata(GgufWriter& file, const Config& config) : file_(file), config_(config) {}

  void u32(const char* key, int64_t value) {
    file_.add_u32(name(key), static_cast<uint32_t>(value));
  }
  void f32(const char* key, double value) { file_.add_f32(name(key), static_cast<float>(value)); }
  void string(const char* key, std::string_view value) { file_.add_string(name(key), value); }
  void copy_f32(const char* key, const char* config_key) {
    if (config_.has(config_key)) f32(key, config_.json.at(config_key));
  }

 private:
  std::string name(const char* key) const { return config_.arch + "." + key; }
  GgufWriter& file_;
  const Config& config_;
};

void add_rope(GgufWriter& file, Metadata& out, const Config& config) {
  const int32_t head_dim = config.head_dim();
  const double base = config.json.value("rope_theta", config.is("gemma3") ? 1e6 : 1e4);
  if (!config.is("gemma2")) out.f32("rope.freq_base", base);
  out.u32("rope.dimension_count",
          static_cast<int64_t>(head_dim * config.json.value("partial_rotary_factor", 1.0)));
  if (!config.has("rope_scaling")) return;
  const Json& rope = config.json.at("rope_scaling");
  const std::string type = rope.contains("rope_type") ? rope.at("rope_type") : rope.at("type");
  if (type == "llama3") {
    add_vector(file, "rope_freqs.weight", llama3_divisors(rope, base, head_dim));
  } else if (type == "longrope") {
    const double original = config.json.at("original_max_position_embeddings");
    out.u32("rope.scaling.original_context_length", static_cast<int64_t>(original));
    out.f32("rope.scaling.attn_factor",
            std::sqrt(1 + std::log(config.max_positions() / original) / std::log(original)));
    add_vector(file, "rope_factors_long.weight", rope.at("long_factor"));
    add_vector(file, "rope_factors_short.weight", rope.at("short_factor"));
  } else {
    out.string("rope.scaling.type", type);
    out.f32("rope.scaling.factor", rope.at("factor"));
    if (type == "yarn")
      out.u32("rope.scaling.original_context_length", rope.at("original_max_position_embeddings"));
  }
}

void add_metadata(GgufWriter& file, const Config& config) {
  const Json& json = config.json;
  Metadata out(file, config);
  file.add_string("general.architecture", config.arch);
  out.u32("block_count", json.at("num_hidden_layers"));
  out.u32("context_length", config.max_positions());
  out.u32("embedding_length", json.at("hidden_size"));
  out.u32("feed_forward_length", json.at("intermediate_size"));
  out.u32("attention.head_count", config.heads());
  out.u32("attention.head_count_kv", config.kv_heads());
  out.u32("attention.key_length", config.head_dim());
  out.u32("attention.value_length", config.head_dim());
  out.f32("attention.layer_norm_rms_epsilon", json.value("rms_norm_eps", 1e-6));
  out.u32("vocab_size", json.at("vocab_size"));
  if (config.has("sliding_window") && !config.is("qwen") && !config.is("smollm3"))
    out.u32("attention.sliding_window", json.at("sliding_window"));
  out.copy_f32("attn_logit_softcapping", "attn_logit_softcapping");
  out.copy_f32("final_logit_softcapping", "final_logit_softcapping");
  out.copy_f32("embedding_scale", "embedding_multiplier");
  out.copy_f32("residual_scale", "residual_multiplier");
  out.copy_f32("logit_scale", "logits_scaling");
  out.copy_f32("attention.scale", "attention_multiplier");
  // Published models have head_dim here, but for the largest, which are told by their layers.
  if (config.is("gemma") && json.value("query_pre_attn_scalar", 256) != config.head_dim())
    out.f32("attention.scale", 1 / std::sqrt(json.at("query_pre_attn_scalar").get<double>()));
  add_rope(file, out, config);
}

}  // namespace

void write_hf_folder(const Json& golden,
                     const TempFolder& folder,
                     bool sharded,
                     Spelling spelling) {
  const Json& config = golden.at("config");
  const bool multimodal = config.contains("text_config");
  SafetensorsWriter shards[2];
  Json index = Json::object();
  int which = 0;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& shape, auto values) {
    if (sharded) which = 1 - which;
    shards[which].add_tensor(name, "F32", shape, f32_bytes(values));
    index[name] = which == 0 ? "model-a.safetensors" : "model-b.safetensors";
  };
  const bool resaved = spelling == Spelling::kResaved;
  for (const auto& [name, tensor] : golden.at("tensors").items()) {
    std::string stored = name;
    if (multimodal)
      stored =
          resaved ? replaced(name, "model.", "model.language_model.") : "language_model." + name;
    add(stored, tensor.at("shape"), values_of(name, tensor));
  }
  if (sharded && config.value("tie_word_embeddings", false))
    add("lm_head.weight", {300, 2}, std::vector<float>(600, 0.0f));
  if (multimodal) {
    add(std::string(resaved ? "model." : "") + "vision_tower.vision_model.post_layernorm.weight",
        {2},
        std::vector<float>{1, 2});
    add("multi_modal_projector.mm_input_projection_weight", {2}, std::vector<float>{1, 2});
  }
  folder.add("config.json", config.dump());
  folder.add("tokenizer.json", byte_level_tokenizer());
  if (!sharded) {
    folder.add("model.safetensors", shards[0].bytes());
    return;
  }
  folder.add("model-a.safetensors", shards[0].bytes());
  folder.add("model-b.safetensors", shards[1].bytes());
  folder.add("model.safetensors.index.json", Json{{"weight_map", index}}.dump());
}

std::string gguf_of(const Json& golden) {
  const Config config(golden.at("config"));
  if (config.is("qwen") && config.json.value("use_sliding_window", false)) return "";
  GgufWriter file;
  add_tiny_vocabulary(file);
  add_metadata(file, config);
  for (const auto& [name, tensor] : golden.at("tensors").items()) {
    const std::vector<int64_t> shape = tensor.at("shape");
    std::vector<float> values = values_of(name, tensor);
    const bool rotated =
        name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos;
    if (rotated && config.interleaves())
      values = interleaved(values, shape.size() > 1 ? shape[1] : 1, config.head_dim());
    if (config.is("gemma") && name.ends_with("norm.weight"))
      for (float& value : values) value += 1.0f;
    file.add_tensor(gguf_name(config, name),
                    std::vector<int64_t>(shape.rbegin(), shape.rend()),
                    0,
                    f32_bytes(values));
  }
  return file.bytes();
}

}  // namespace headwater::testing
