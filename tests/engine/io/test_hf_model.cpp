// A Hugging Face folder: what its config.json asks for, and its weights, whole or in shards.
#include <catch2/catch.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/hf_model.h"
#include "engine/model/loaded_model.h"
#include "engine/model/rope_scaling.h"
#include "tests/support/load_error.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temp_file.h"

namespace headwater {
namespace {

using Catch::Contains;
using testing::load_error;
using testing::TempFolder;

constexpr const char* kConfig = R"({"model_type":"llama","hidden_act":"silu","vocab_size":300,
  "hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,
  "num_key_value_heads":2,"rms_norm_eps":1e-6,"max_position_embeddings":8192,"rope_theta":500000.0)";

ArchReading read_config(const std::string& more) {
  const JsonObject config = JsonObject::parse(kConfig + more + "}", "config.json");
  return read_config_arch(find_hf_arch("llama", "config.json"), config);
}

TEST_CASE("llama: config.json with the defaults it may leave out", "[engine][unit]") {
  const ArchReading reading = read_config("");
  const ModelSpec& spec = reading.spec;
  CHECK(spec.layers.size() == 2);
  CHECK(spec.layers[0].heads.head_dim == 16);
  CHECK(spec.rms_eps == 1e-6f);
  CHECK_FALSE(spec.tied_embedding);
  CHECK(reading.weights.qkv_bias == Presence::kAbsent);
  CHECK(spec.ropes[0] == make_rope(RopePairing::kHalves, 16, 500000, {}));
  CHECK(read_config(R"(,"attention_bias":true)").weights.o_bias == Presence::kRequired);
  CHECK(read_config(R"(,"tie_word_embeddings":true)").spec.tied_embedding);
  CHECK(read_config(R"(,"head_dim":32)").spec.layers[1].heads.head_dim == 32);
}

TEST_CASE("llama: every required key of config.json is named when missing", "[engine][unit]") {
  for (const std::string key : {"hidden_act",
                                "vocab_size",
                                "hidden_size",
                                "intermediate_size",
                                "num_hidden_layers",
                                "num_attention_heads",
                                "rms_norm_eps",
                                "max_position_embeddings"}) {
    INFO(key);
    std::string text = std::string(kConfig) + "}";
    text.replace(text.find("\"" + key + "\""), key.size() + 2, "\"other\"");
    const JsonObject config = JsonObject::parse(text, "config.json");
    CHECK_THAT(load_error([&] { read_config_arch(find_hf_arch("llama", ""), config); }),
               Contains("config.json: key \"" + key + "\" is missing"));
  }
}

TEST_CASE("llama: RoPE scaling of config.json", "[engine][unit]") {
  RopeScaling expected;
  expected.rule = RopeRule::kLlama3;
  expected.factor = 32;
  expected.low_freq_factor = 1;
  expected.high_freq_factor = 4;
  expected.original_positions = 8192;
  const std::string llama3 =
      R"({"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"})";
  CHECK(read_config(R"(,"rope_scaling":)" + llama3).spec.ropes[0] ==
        make_rope(RopePairing::kHalves, 16, 500000, expected));

  expected = {};
  expected.rule = RopeRule::kLinear;
  expected.factor = 2;
  CHECK(read_config(R"(,"rope_scaling":{"type":"linear","factor":2.0})").spec.ropes[0] ==
        make_rope(RopePairing::kHalves, 16, 500000, expected));
  CHECK(read_config(R"(,"rope_parameters":{"rope_type":"linear","factor":2.0,"rope_theta":1000.0})")
            .spec.ropes[0] == make_rope(RopePairing::kHalves, 16, 1000, expected));

  expected.rule = RopeRule::kYarn;
  expected.factor = 4;
  expected.original_positions = 2048;
  expected.magnitude = yarn_magnitude(4);
  const std::string yarn =
      R"(,"rope_scaling":{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":2048)";
  CHECK(read_config(yarn + "}").spec.ropes[0] ==
        make_rope(RopePairing::kHalves, 16, 500000, expected));
  CHECK(read_config(yarn + R"(,"attention_factor":0.75})").spec.ropes[0].magnitude == 0.75f);
  CHECK(read_config(yarn + R"(,"mscale":1.0,"mscale_all_dim":1.0})").spec.ropes[0].magnitude ==
        1.0f);

  CHECK(read_config(R"(,"rope_scaling":null)").spec.ropes[0] ==
        make_rope(RopePairing::kHalves, 16, 500000, {}));
}

TEST_CASE("llama: what config.json cannot ask for", "[engine][unit]") {
  const std::vector<std::pair<std::string, const char*>> cases = {
      {R"("rope_scaling":{"type":"dynamic","factor":2.0})",
       "type \"dynamic\" is not supported; expected one of default, linear, llama3, yarn"},
      {R"("rope_scaling":{"type":"longrope","factor":2.0})", "key \"short_factor\" is missing"},
      {R"("rope_scaling":{"type":"linear"})", "rope_scaling: key \"factor\" is missing"},
      {R"("rope_scaling":{"type":"linear","factor":0})", "RoPE scaling factor is 0"},
      {R"("rope_scaling":{"rope_type":"llama3","factor":2.0,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":8192})",
       "low_freq_factor < high_freq_factor"},
      {R"("rope_scaling":7)", "key \"rope_scaling\" is 7, expected an object"},
      {R"("mlp_bias":true)", "\"mlp_bias\" is true"},
      {R"("partial_rotary_factor":0.5)", "\"partial_rotary_factor\" is not 1"},
      {R"("quantization_config":{"quant_method":"awq"})",
       "quantization method \"awq\" is not supported"},
      {R"("head_dim":15)", "head dimension is 15, expected an even number"},
      {R"("head_dim":"x")", "key \"head_dim\" is \"x\", expected an integer from 2 to 1024"},
      {R"("attention_bias":1)", "key \"attention_bias\" is 1, expected true or false"},
  };
  for (const auto& [more, expected] : cases) {
    INFO(more);
    CHECK_THAT(load_error([&, &more = more] { read_config("," + more); }), Contains(expected));
  }
  CHECK_THAT(load_error([] { find_hf_arch("gpt2", "config.json"); }),
             Contains("\"gpt2\", which is not supported; expected one of: llama"));
}

TEST_CASE("hf_model: what a folder has to hold", "[engine][unit]") {
  const TempFolder folder;
  const std::string path = folder.path().string();
  const auto refused = [&] { return load_error([&] { load_model(path); }); };
  CHECK_THAT(refused(), Contains("has no config.json"));
  folder.add("config.json", std::string(kConfig) + "}");
  CHECK_THAT(refused(), Contains("has no weights"));
  testing::SafetensorsWriter part;
  part.add_tensor("a", "F32", {1}, "1234");
  folder.add("model.safetensors", part.bytes());
  CHECK_THAT(refused(), Contains("\"model.embed_tokens.weight\""));
}

TEST_CASE("hf_model: shards by their index", "[engine][unit]") {
  const TempFolder folder;
  testing::SafetensorsWriter first;
  first.add_tensor("a", "F32", {1}, "1234");
  testing::SafetensorsWriter second;
  second.add_tensor("b", "BF16", {2}, "5678");
  folder.add("m-1.safetensors", first.bytes());
  folder.add("m-2.safetensors", second.bytes());
  folder.add("model.safetensors.index.json",
             R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  std::vector<MappedFile> files;
  Refusals refusals = Refusals::thrown();
  const TensorSet tensors = open_hf_tensors(folder.path().string(), files, refusals);
  CHECK(files.size() == 2);
  REQUIRE(tensors.find("b") != nullptr);
  CHECK(tensors.find("b")->format == QuantFormat::kBF16);

  const auto refused = [&] {
    return load_error([&] { open_hf_tensors(folder.path().string(), files, refusals); });
  };
  folder.add("model.safetensors.index.json",
             R"({"weight_map":{"a":"m-2.safetensors","b":"m-2.safetensors"}})");
  CHECK_THAT(refused(), Contains("tensor \"a\" is not in file \"m-2.safetensors\""));
  folder.add("model.safetensors.index.json",
             R"({"weight_map":{"a":"m-1.safetensors","b":"m-3.safetensors"}})");
  CHECK_THAT(refused(), Contains("names 2 files; not in the folder: \"m-3.safetensors\""));
  folder.add("m-2.safetensors", first.bytes());
  folder.add("model.safetensors.index.json",
             R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  CHECK_THAT(refused(), Contains("tensor \"a\" is also in"));
  const std::string cut = second.bytes();
  folder.add("m-2.safetensors", cut.substr(0, cut.size() - 3));
  CHECK_THAT(refused(), Contains("m-2.safetensors") && Contains("3 bytes are missing"));

  // Every reason at once: one shard missing, one cut.
  folder.add(
      "model.safetensors.index.json",
      R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-3.safetensors"}})");
  std::vector<std::string> reasons;
  Refusals collected = Refusals::collected(reasons);
  open_hf_tensors(folder.path().string(), files, collected);
  REQUIRE(reasons.size() == 2);
  CHECK_THAT(reasons[0], Contains("not in the folder: \"m-3.safetensors\""));
  CHECK_THAT(reasons[1], Contains("3 bytes are missing"));
}

}  // namespace
}  // namespace headwater
