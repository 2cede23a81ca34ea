// What the architectures read of config.json and of GGUF keys, by published files where they
// matter, and what they refuse. The arithmetic behind it: tests/golden/test_golden_archs.cpp.
#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/arch/arch_table.h"
#include "engine/model/rope_scaling.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/load_error.h"

namespace headwater {
namespace {

using Catch::Contains;
using Json = nlohmann::json;
using testing::load_error;

ArchReading read(const Json& json) {
  const JsonObject config = JsonObject::parse(json.dump(), "config.json");
  return read_config_arch(find_hf_arch(config.string("model_type"), "config.json"), config);
}

Json small(const std::string& model_type) {
  return {{"model_type", model_type},
          {"hidden_act", "silu"},
          {"vocab_size", 300},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 12},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"rms_norm_eps", 1e-6},
          {"max_position_embeddings", 8192},
          {"rope_theta", 500000.0}};
}

Json small_gemma(const std::string& model_type) {
  Json json = small(model_type);
  json.erase("hidden_act");
  json["hidden_activation"] = "gelu_pytorch_tanh";
  json["head_dim"] = 32;
  return json;
}

std::vector<int32_t> windows(const ModelSpec& spec) {
  std::vector<int32_t> out;
  for (const LayerSpec& layer : spec.layers) out.push_back(layer.window);
  return out;
}

TEST_CASE("archs: gemma-3-4b's config.json leaves most of its text model out", "[engine][unit]") {
  const Json config = Json::parse(R"({
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
    "eos_token_id": [1, 106], "model_type": "gemma3", "mm_tokens_per_image": 256,
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
      "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 1024},
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}})");
  const ArchReading reading = read(config);
  const ModelSpec& spec = reading.spec;
  CHECK(spec.architecture == "gemma3");
  CHECK(spec.vocab_size == 262208);
  CHECK(spec.max_positions == 131072);
  CHECK(spec.rms_eps == 1e-6f);
  CHECK(spec.tied_embedding);
  CHECK(spec.norm_before);
  CHECK(spec.norm_after);
  CHECK(spec.qk_norm == QkNorm::kHead);
  CHECK(spec.gate == Gate::kGeluTanh);
  CHECK(spec.embedding_scale == std::sqrt(2560.0f));
  CHECK(spec.attention_softcap == 0);
  CHECK(spec.logit_softcap == 0);
  CHECK(reading.weights.norm_offset == 1.0f);
  REQUIRE(spec.layers.size() == 34);
  const LayerSpec& layer = spec.layers[0];
  CHECK(layer.heads.num_heads == 8);
  CHECK(layer.heads.num_kv_heads == 4);
  CHECK(layer.heads.head_dim == 256);
  CHECK(layer.attention_scale == 1 / std::sqrt(256.0f));
  RopeScaling linear;
  linear.rule = RopeRule::kLinear;
  linear.factor = 8;
  REQUIRE(spec.ropes.size() == 2);
  CHECK(spec.ropes[0] == make_rope(RopePairing::kHalves, 256, 1000000.0, linear));
  CHECK(spec.ropes[1] == make_rope(RopePairing::kHalves, 256, 10000.0, {}));
  for (size_t i = 0; i < 34; ++i) {
    CHECK(spec.layers[i].window == (i % 6 == 5 ? 0 : 1024));
    CHECK(spec.layers[i].rope_idx == (i % 6 == 5 ? 0 : 1));
  }
}

TEST_CASE("archs: newer spellings say the same", "[engine][unit]") {
  const ModelSpec old = read(small_gemma("gemma3_text")).spec;
  Json json = small_gemma("gemma3_text");
  json.erase("rope_theta");
  json["layer_types"] = Json::array();
  for (int i = 0; i < 12; ++i)
    json["layer_types"].push_back(i % 6 == 5 ? "full_attention" : "sliding_attention");
  json["rope_parameters"] = {
      {"full_attention", {{"rope_type", "default"}, {"rope_theta", 5e5}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  const ModelSpec renewed = read(json).spec;
  CHECK(renewed.ropes == old.ropes);
  CHECK(windows(renewed) == windows(old));

  json = small("llama");
  json.erase("rope_theta");
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
  CHECK(read(json).spec.ropes == read(small("llama")).spec.ropes);
}

TEST_CASE("archs: which layers see a window", "[engine][unit]") {
  const std::vector<int32_t> none(12, 0);
  Json json = small("mistral");
  json["sliding_window"] = 4096;
  CHECK(windows(read(json).spec) == std::vector<int32_t>(12, 4096));
  json["sliding_window"] = nullptr;
  CHECK(windows(read(json).spec) == none);
  json["sliding_window"] = 8192;  // never reached
  CHECK(windows(read(json).spec) == none);
  json.erase("sliding_window");
  CHECK(windows(read(json).spec) == std::vector<int32_t>(12, 4096));

  json = small("qwen2");
  json["sliding_window"] = 1000;
  json["use_sliding_window"] = false;
  json["max_window_layers"] = 10;
  CHECK(windows(read(json).spec) == none);
  json["use_sliding_window"] = true;
  CHECK(windows(read(json).spec) == std::vector<int32_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1000, 1000});

  json = small_gemma("gemma2");
  json["sliding_window"] = 512;
  const ModelSpec gemma2 = read(json).spec;
  CHECK(gemma2.attention_softcap == 50);
  CHECK(gemma2.logit_softcap == 30);
  for (size_t i = 0; i < 12; ++i) CHECK(gemma2.layers[i].window == (i % 2 == 0 ? 512 : 0));

  json = small("phi3");
  json["sliding_window"] = 2047;
  CHECK(windows(read(json).spec) == std::vector<int32_t>(12, 2047));
}

TEST_CASE("archs: layers without rotary embedding", "[engine][unit]") {
  Json json = small("smollm3");
  json["no_rope_layer_interval"] = 4;
  for (const bool listed : {false, true}) {
    if (listed) json["no_rope_layers"] = {1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0};
    const ModelSpec spec = read(json).spec;
    for (size_t i = 0; i < 12; ++i) CHECK(spec.layers[i].rope_idx == (i % 4 == 3 ? -1 : 0));
  }
  CHECK(read(json).spec.tied_embedding);
}

TEST_CASE("archs: phi3's two sets of frequencies", "[engine][unit]") {
  Json json = small("phi3");
  json["hidden_size"] = 128;  // head size 32
  json["partial_rotary_factor"] = 0.75;
  json["original_max_position_embeddings"] = 4096;
  std::vector<float> shorter, longer;
  for (int i = 0; i < 12; ++i) {
    shorter.push_back(1.0f + 0.25f * static_cast<float>(i));
    longer.push_back(2.0f + 0.5f * static_cast<float>(i));
  }
  for (const char* type : {"longrope", "su", "yarn"}) {
    json["rope_scaling"] = {{"type", type}, {"short_factor", shorter}, {"long_factor", longer}};
    const ModelSpec spec = read(json).spec;
    RopeScaling scaling;
    scaling.magnitude = std::sqrt(1 + std::log(2.0) / std::log(4096.0));
    REQUIRE(spec.long_ropes.size() == 1);
    CHECK(spec.ropes[0] == make_rope(RopePairing::kHalves, 24, 500000.0, scaling, shorter));
    CHECK(spec.long_ropes[0] == make_rope(RopePairing::kHalves, 24, 500000.0, scaling, longer));
    CHECK(spec.long_after == 4096);
  }
  json["rope_scaling"]["short_factor"] = std::vector<float>(5, 1.0f);
  CHECK_THAT(load_error([&] { read(json); }),
             Contains("\"short_factor\": has 5 elements, expected 12"));
  json["rope_scaling"]["short_factor"] = std::vector<float>(12, 0.0f);
  CHECK_THAT(load_error([&] { read(json); }), Contains("not positive and finite"));
  json["partial_rotary_factor"] = 0.1;
  CHECK_THAT(load_error([&] { read(json); }), Contains("rotates 3 of 32 dimensions"));
}

TEST_CASE("archs: granite's multipliers", "[engine][unit]") {
  Json json = small("granite");
  json["embedding_multiplier"] = 12.0;
  json["residual_multiplier"] = 0.22;
  json["attention_multiplier"] = 0.0078125;
  json["logits_scaling"] = 8.0;
  const ModelSpec spec = read(json).spec;
  CHECK(spec.embedding_scale == 12.0f);
  CHECK(spec.residual_scale == 0.22f);
  CHECK(spec.logit_scale == 0.125f);
  CHECK(spec.layers[5].attention_scale == 0.0078125f);
  json["logits_scaling"] = 0;
  CHECK_THAT(load_error([&] { read(json); }), Contains("\"logits_scaling\" is 0"));
}

TEST_CASE("archs: biases and norms that checkpoints must hold", "[engine][unit]") {
  CHECK(read(small("qwen2")).weights.qkv_bias == Presence::kRequired);
  CHECK(read(small("qwen2")).weights.o_bias == Presence::kAbsent);
  CHECK(read(small("qwen3")).spec.layers[0].heads.head_dim == 128);
  const ModelSpec olmo2 = read(small("olmo2")).spec;
  CHECK_FALSE(olmo2.norm_before);
  CHECK(olmo2.norm_after);
  CHECK(olmo2.qk_norm == QkNorm::kRow);
}

TEST_CASE("archs: config.json that asks for more is refused in a sentence", "[engine][unit]") {
  struct Refused {
    std::string model_type, key;
    Json value;
    std::string expected;
  };
  const std::vector<Refused> cases = {
      {"llama", "num_local_experts", 8, "mixture of experts"},
      {"qwen3", "num_experts", 128, "mixture of experts"},
      {"llama", "attn_logit_softcapping", 50.0, "\"attn_logit_softcapping\" is 50.0"},
      {"llama", "embedding_multiplier", 12, "model_type llama does not know it"},
      {"llama", "layer_types", {"full_attention", "linear_attention"}, "\"layer_types\" is given"},
      {"llama", "vision_config", {{"hidden_size", 8}}, "\"vision_config\" is given"},
      {"llama", "sliding_window", 1024, "\"sliding_window\" is 1024"},
      {"qwen2", "logit_scale", 0.25, "\"logit_scale\" is 0.25"},
      {"gemma3_text", "attn_logit_softcapping", 50.0, "\"attn_logit_softcapping\" is 50.0"},
      {"gemma3_text",
       "use_bidirectional_attention",
       true,
       "\"use_bidirectional_attention\" is true"},
      {"gemma3_text", "hidden_activation", "gelu", "is \"gelu\", expected \"gelu_pytorch_tanh\""},
      {"gemma2", "layer_types", {"full_attention"}, "has 1 elements, expected one per layer"},
      {"gemma2", "layer_types", Json(12, "chunked_attention"), "asks for \"chunked_attention\""},
      {"gemma2", "layer_types", 7, "\"layer_types\" is 7, expected a list of strings"},
      {"gemma2", "query_pre_attn_scalar", 0, "\"query_pre_attn_scalar\" is 0"},
      {"gemma2", "attn_logit_softcapping", -1, "expected a positive number"},
      {"gemma2", "sliding_window", 0, "\"sliding_window\" is 0"},
      {"smollm3", "no_rope_layers", {1, 0}, "has 2 elements, expected one per layer"},
      {"smollm3", "no_rope_layer_interval", 0, "\"no_rope_layer_interval\" is 0"},
      {"phi3", "sliding_window", "wide", "\"sliding_window\" is \"wide\""},
      {"granite", "mlp_bias", true, "\"mlp_bias\" is true"},
      {"qwen3", "num_hidden_layers", 1000000, "\"num_hidden_layers\" is 1000000"},
      {"mistral", "num_key_value_heads", 3, "4 query heads cannot share 3"},
  };
  for (const Refused& refused : cases) {
    Json json = refused.model_type.starts_with("gemma") ? small_gemma(refused.model_type)
                                                        : small(refused.model_type);
    json[refused.key] = refused.value;
    CAPTURE(refused.model_type, refused.key);
    const std::string message = load_error([&] { read(json); });
    CHECK_THAT(message, Contains(refused.expected));
    CHECK_THAT(message, Contains("config.json: "));
  }
  // What means nothing is not in the way.
  Json json = small("llama");
  json["num_local_experts"] = 0;
  json["sliding_window"] = nullptr;
  json["layer_types"] = Json(12, "full_attention");
  json["residual_multiplier"] = 1.0;
  json["pretraining_tp"] = 1;
  json["attention_dropout"] = 0.5;
  CHECK(load_error([&] { read(json); }).empty());
  CHECK_THAT(load_error([&] {
               read({{"model_type", "mixtral"}});
             }),
             Contains("\"mixtral\", which is not supported; expected one of: llama, mistral, "
                      "smollm3, qwen2, qwen3, gemma2, gemma3, gemma3_text, phi3, olmo2, granite"));
}

// ---- GGUF keys

ArchReading read_gguf(const std::string& arch,
                      const std::function<void(testing::GgufWriter&, const std::string&)>& add,
                      uint32_t num_layers = 12) {
  testing::GgufWriter file;
  file.add_string("general.architecture", arch);
  const auto u32 = [&](const char* key, uint32_t value) { file.add_u32(arch + "." + key, value); };
  u32("block_count", num_layers);
  u32("context_length", 8192);
  u32("embedding_length", 64);
  u32("feed_forward_length", 128);
  u32("attention.head_count", 4);
  u32("attention.head_count_kv", 2);
  u32("attention.key_length", 32);
  u32("vocab_size", 300);
  file.add_f32(arch + ".attention.layer_norm_rms_epsilon", 1e-6f);
  add(file, arch + ".");
  const std::string bytes = file.bytes();
  const GgufFile parsed =
      GgufFile::parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "m.gguf");
  TensorSet tensors;
  tensors.add(parsed);
  return read_gguf_arch(find_gguf_arch(arch, "m.gguf"), parsed, tensors);
}

TEST_CASE("archs: GGUF keys of gemma", "[engine][unit]") {
  const auto add = [](testing::GgufWriter& file, const std::string& prefix) {
    file.add_u32(prefix + "attention.sliding_window", 512);
    file.add_f32(prefix + "rope.freq_base", 1e6f);
  };
  const ModelSpec gemma3 = read_gguf("gemma3", add).spec;
  CHECK(gemma3.embedding_scale == 8.0f);
  CHECK(gemma3.ropes[1] == make_rope(RopePairing::kHalves, 32, 10000.0, {}));
  for (size_t i = 0; i < 12; ++i) {
    CHECK(gemma3.layers[i].window == (i % 6 == 5 ? 0 : 512));
    CHECK(gemma3.layers[i].rope_idx == (i % 6 == 5 ? 0 : 1));
    CHECK(gemma3.layers[i].attention_scale == 0.0f);  // by the head size
  }
  // The largest divide by hidden size / heads.
  CHECK(read_gguf("gemma3", add, 62).spec.layers[0].attention_scale == 0.25f);
  CHECK(read_gguf("gemma2", add, 46).spec.layers[0].attention_scale == 0.25f);
  CHECK(read_gguf("gemma2", add, 42).spec.layers[0].attention_scale == 0.0f);

  const std::vector<int32_t> pattern = windows(
      read_gguf("gemma3", [&](testing::GgufWriter& file, const std::string& prefix) {
        add(file, prefix);
        std::string flags(12, '\1');
        flags[2] = '\0';
        file.add_raw(prefix + "attention.sliding_window_pattern",
                     GgufType::kArray,
                     testing::le_bytes<int32_t>(7) + testing::le_bytes<uint64_t>(12) + flags);
      }).spec);
  for (size_t i = 0; i < 12; ++i) CHECK(pattern[i] == (i == 2 ? 0 : 512));
  CHECK_THAT(
      load_error([&] {
        read_gguf("gemma3", [&](testing::GgufWriter& file, const std::string& prefix) {
          add(file, prefix);
          file.add_i32s(prefix + "attention.sliding_window_pattern", std::vector<int32_t>{1, 0});
        });
      }),
      Contains("expected one of true or false per layer"));
}

TEST_CASE("archs: GGUF windows and multipliers of the others", "[engine][unit]") {
  const auto window = [](testing::GgufWriter& file, const std::string& prefix) {
    file.add_u32(prefix + "attention.sliding_window", 2047);
  };
  for (const char* arch : {"llama", "phi3"})
    CHECK(windows(read_gguf(arch, window).spec) == std::vector<int32_t>(12, 2047));
  for (const char* arch : {"qwen2", "qwen3", "olmo2", "granite", "smollm3"})
    CHECK_THAT(
        load_error([&] { read_gguf(arch, window); }),
        Contains(".attention.sliding_window\" is not known for architecture " + std::string(arch)));
  const ModelSpec granite =
      read_gguf("granite", [](testing::GgufWriter& file, const std::string& prefix) {
        file.add_f32(prefix + "embedding_scale", 12.0f);
        file.add_f32(prefix + "residual_scale", 0.5f);
        file.add_f32(prefix + "logit_scale", 8.0f);
        file.add_f32(prefix + "attention.scale", 0.25f);
      }).spec;
  CHECK(granite.embedding_scale == 12.0f);
  CHECK(granite.residual_scale == 0.5f);
  CHECK(granite.logit_scale == 0.125f);
  CHECK(granite.layers[0].attention_scale == 0.25f);
  CHECK(granite.ropes[0].pairing == RopePairing::kAdjacent);
  const ModelSpec smollm3 = read_gguf("smollm3", [](auto&, auto&) {}).spec;
  for (size_t i = 0; i < 12; ++i) CHECK(smollm3.layers[i].rope_idx == (i % 4 == 3 ? -1 : 0));
}

}  // namespace
}  // namespace headwater
