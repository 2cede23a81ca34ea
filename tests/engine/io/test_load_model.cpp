// What a GGUF may say, and what is refused. Above 400 lines: a check for every sentence of a
// refusal.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/model/loaded_model.h"
#include "engine/model/rope_scaling.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/load_error.h"
#include "tests/support/skip.h"
#include "tests/support/temp_file.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"

namespace headwater {
namespace {

using Catch::Contains;
using testing::GgufWriter;
using testing::le_bytes;
using testing::load_error;
using testing::TempFolder;
using testing::TinyModelOptions;

std::vector<float> decode(const WeightView& view) {
  const QuantTraits& traits = quant_traits(view.format);
  std::vector<float> values(static_cast<size_t>(view.rows * view.cols));
  traits.decode(view.data, view.rows * view.cols / traits.block_elements, values.data());
  return values;
}

// ---- GGUF

TEST_CASE("load_model: a tiny GGUF of every weight format", "[engine][unit]") {
  for (const QuantTraits& traits : quant_formats()) {
    INFO("format " << traits.name);
    TinyModelOptions options;
    options.format = traits.format;
    options.attention_bias = true;
    if (traits.block_elements == 256) {
      options.hidden_dim = 256;
      options.head_dim = 64;
      options.ffn_dim = 256;
    }
    const auto model = testing::make_tiny_model(options);
    const ModelSpec& spec = model->spec;
    CHECK(model->name == "tiny");
    CHECK(spec.architecture == "llama");
    CHECK(spec.vocab_size == testing::kTinyVocabSize);
    CHECK(spec.hidden_dim == options.hidden_dim);
    CHECK(spec.max_positions == 4096);
    CHECK(spec.rms_eps == 1e-5f);
    CHECK_FALSE(spec.tied_embedding);
    REQUIRE(spec.layers.size() == 2);
    CHECK(spec.layers[1].heads.num_heads == 4);
    CHECK(spec.layers[1].heads.num_kv_heads == 2);
    CHECK(spec.layers[1].heads.head_dim == options.head_dim);
    CHECK(spec.layers[1].ffn_dim == options.ffn_dim);
    REQUIRE(spec.ropes.size() == 1);
    CHECK(spec.ropes[0] == make_rope(RopePairing::kAdjacent, options.head_dim, 10000.0, {}));

    REQUIRE(model->weights.layers.size() == 2);
    const LayerWeights& layer = model->weights.layers[1];
    CHECK(layer.q.format == traits.format);
    CHECK(layer.q.rows == 4 * options.head_dim);
    CHECK(layer.q.cols == options.hidden_dim);
    CHECK(layer.k.rows == 2 * options.head_dim);
    CHECK(layer.o.rows == options.hidden_dim);
    CHECK(layer.down.cols == options.ffn_dim);
    CHECK(layer.attn_norm.format == QuantFormat::kF32);
    CHECK(layer.attn_norm.cols == options.hidden_dim);
    CHECK(layer.q_bias.cols == 4 * options.head_dim);
    CHECK(layer.o_bias.cols == options.hidden_dim);
    CHECK(model->weights.output.data != model->weights.token_embedding.data);
    for (const float value : decode(layer.attn_norm)) CHECK(std::fabs(value - 1) <= 0.2f);
    const std::vector<float> q = decode(layer.q);
    CHECK(std::any_of(q.begin(), q.end(), [](float value) { return value != 0; }));
    CHECK_THAT(model->weight_format, Contains(std::string(traits.name)));
    CHECK(model->vocabulary.tokens.size() == testing::kTinyVocabSize);
    CHECK(model->vocabulary.merges.front() == "e e");
    CHECK(model->vocabulary.kinds[testing::kTinyBos] == TokenKind::kControl);
    CHECK(model->vocabulary.add_bos);
    CHECK(model->eos_token_ids == std::vector<int32_t>{testing::kTinyEos, testing::kTinyImEnd});
    CHECK_THAT(model->chat_template, Contains("add_generation_prompt"));
  }
}

TEST_CASE("load_model: tied embedding, absent biases, RoPE divisors", "[engine][unit]") {
  TinyModelOptions options;
  options.tied_embedding = true;
  options.rope_divisors = true;
  const auto tied = testing::make_tiny_model(options);
  options.tied_embedding = false;
  options.rope_divisors = false;
  const auto untied = testing::make_tiny_model(options);
  CHECK(tied->spec.tied_embedding);
  CHECK(tied->weights.output.data == tied->weights.token_embedding.data);
  CHECK(tied->num_parameters == untied->num_parameters - 300 * 64);
  CHECK(tied->weight_bytes == untied->weight_bytes - 300 * 64 * 4);
  CHECK(tied->weights.layers[0].q_bias.data == nullptr);
  for (size_t i = 0; i < 16; ++i) {
    const double divisor = untied->spec.ropes[0].inv_freq[i] / tied->spec.ropes[0].inv_freq[i];
    CHECK(divisor >= 1.4);
    CHECK(divisor <= 2.6);
  }
}

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// What to change in a tiny model's file.
struct Edit {
  std::string drop_key;
  std::function<void(GgufWriter&)> add;  // metadata and tensors
  std::string drop_tensor;
};

std::string edited(const Edit& edit, const std::string& bytes = testing::tiny_gguf()) {
  const GgufFile file = GgufFile::parse(as_bytes(bytes), "tiny");
  GgufWriter out;
  for (const auto& [key, value] : file.metadata()) {
    if (key == edit.drop_key) continue;
    const std::string_view data(reinterpret_cast<const char*>(value.bytes.data()),
                                value.bytes.size());
    if (value.is_array) {
      out.add_raw(key,
                  GgufType::kArray,
                  le_bytes(static_cast<int32_t>(value.type)) +
                      le_bytes<uint64_t>(static_cast<uint64_t>(value.count)) + std::string(data));
    } else {
      out.add_raw(key, value.type, data);
    }
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name == edit.drop_tensor) continue;
    out.add_tensor(tensor.name,
                   std::span(tensor.ne).first(static_cast<size_t>(tensor.num_dims)),
                   tensor.type->id,
                   {reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size()});
  }
  if (edit.add) edit.add(out);
  return out.bytes();
}

std::string refusal(const std::string& bytes) {
  const TempFolder folder;
  const std::string path = folder.add("m.gguf", bytes);
  return load_error([&] { load_model(path); });
}

TEST_CASE("load_model: an edited copy without edits loads", "[engine][unit]") {
  CHECK(refusal(edited({})).empty());
}

TEST_CASE("load_model: every required key is named when missing", "[engine][unit]") {
  for (const std::string key : {"general.architecture",
                                "llama.block_count",
                                "llama.context_length",
                                "llama.embedding_length",
                                "llama.feed_forward_length",
                                "llama.attention.head_count",
                                "llama.attention.layer_norm_rms_epsilon",
                                "tokenizer.ggml.model",
                                "tokenizer.ggml.merges"}) {
    INFO(key);
    CHECK_THAT(refusal(edited({key, {}, ""})), Contains("\"" + key + "\" is missing"));
  }
  for (const std::string key : {"llama.attention.key_length",
                                "llama.rope.dimension_count",
                                "llama.rope.freq_base",
                                "general.name",
                                "tokenizer.chat_template"}) {
    INFO(key);
    const std::string message = refusal(edited({key, {}, ""}));
    // Without its key the head dimension is hidden / heads = 16, which is not this model's.
    CHECK(message.empty() == (key != "llama.attention.key_length"));
  }
}

struct Refused {
  const char* what;
  Edit edit;
  const char* expected;
};

Edit replace_u32(const std::string& key, uint32_t value) {
  return {key, [=](GgufWriter& file) { file.add_u32(key, value); }, ""};
}

Edit replace_string(const std::string& key, const std::string& value) {
  return {key, [=](GgufWriter& file) { file.add_string(key, value); }, ""};
}

Edit replace_tensor(const std::string& name, std::vector<int64_t> ne, int32_t type, size_t bytes) {
  return {"",
          [=](GgufWriter& file) { file.add_tensor(name, ne, type, std::string(bytes, '\0')); },
          name};
}

Edit rope_type(const std::string& type) { return replace_string("llama.rope.scaling.type", type); }

TEST_CASE("load_model: what cannot be computed is refused by name", "[engine][unit]") {
  const std::string down = "blk.1.ffn_down.weight";
  const std::vector<Refused> cases = {
      {"architecture",
       replace_string("general.architecture", "bert"),
       "\"bert\", which is not supported; expected one of: llama"},
      {"adapter", replace_string("general.type", "adapter"), "\"general.type\" is \"adapter\""},
      {"no layers", replace_u32("llama.block_count", 0), "\"llama.block_count\" is 0"},
      {"2^31 layers",
       replace_u32("llama.block_count", 1u << 31),
       "\"llama.block_count\" is 2147483648"},
      {"more layers than tensors",
       replace_u32("llama.block_count", 3),
       "needs 9 tensors that are missing: \"blk.2.attn_norm.weight\""},
      {"fewer layers",
       replace_u32("llama.block_count", 1),
       "9 tensors have no place in architecture llama"},
      {"no heads",
       replace_u32("llama.attention.head_count", 0),
       "\"llama.attention.head_count\" is 0"},
      {"3 kv heads",
       replace_u32("llama.attention.head_count_kv", 3),
       "4 query heads cannot share 3 key/value heads"},
      {"odd head",
       replace_u32("llama.attention.key_length", 33),
       "\"llama.attention.value_length\" is 32, expected 33"},
      {"wide rotation",
       replace_u32("llama.rope.dimension_count", 64),
       "\"llama.rope.dimension_count\" is 64"},
      {"odd rotation", replace_u32("llama.rope.dimension_count", 31), "expected an even number"},
      {"experts", replace_u32("llama.expert_count", 8), "mixture of experts"},
      {"unknown key",
       replace_u32("llama.attention.clamp_kqv", 8),
       "\"llama.attention.clamp_kqv\" is not known for architecture llama"},
      {"later tokens",
       {"", [](GgufWriter& file) { file.add_bool("llama.attention.causal", false); }, ""},
       "attention to later tokens is not supported"},
      {"negative scale",
       {"", [](GgufWriter& file) { file.add_f32("llama.attention.scale", -1.0f); }, ""},
       "expected a positive number"},
      {"hidden",
       replace_u32("llama.embedding_length", 128),
       "has shape [300, 64], expected [300, 128]"},
      {"vocabulary",
       replace_u32("llama.vocab_size", 299),
       "\"token_embd.weight\" has shape [300, 64], expected [299, 64]"},
      {"longrope", rope_type("longrope"), "needs the tensors \"rope_factors_long.weight\""},
      {"dynamic",
       rope_type("dynamic"),
       "type \"dynamic\" is not supported; expected one of none, linear, yarn, longrope"},
      {"base",
       {"llama.rope.freq_base",
        [](GgufWriter& file) { file.add_f32("llama.rope.freq_base", 0.5f); },
        ""},
       "RoPE base is 0.5"},
      {"type of a key",
       replace_string("llama.context_length", "long"),
       "\"llama.context_length\" is of type string"},
      {"MXFP4 tensor",
       replace_tensor(down, {128, 64}, 39, 64 * 4 * 17),
       "\"blk.1.ffn_down.weight\" is of type MXFP4 (id 39), which is not supported; expected one "
       "of F32, F16"},
      {"bias of q alone",
       {"",
        [](GgufWriter& file) {
          file.add_tensor(
              "blk.0.attn_q.bias", std::vector<int64_t>{128}, 0, std::string(512, '\0'));
        },
        ""},
       "needs 2 tensors that are missing: \"blk.0.attn_k.bias\", \"blk.0.attn_v.bias\""},
      {"missing tensor", {"", {}, down}, "missing: \"blk.1.ffn_down.weight\""},
      {"shape",
       replace_tensor(down, {64, 128}, 0, 64 * 128 * 4),
       "\"blk.1.ffn_down.weight\" has shape [128, 64], expected [64, 128]"},
      {"extra tensor",
       replace_tensor("blk.0.attn_sinks.weight", {4}, 0, 16),
       "no place in architecture llama, so the model would not be computed as trained: "
       "\"blk.0.attn_sinks.weight\""},
      {"divisors", replace_tensor("rope_freqs.weight", {8}, 0, 32), "expected 16 elements"},
      {"zero divisors", replace_tensor("rope_freqs.weight", {16}, 0, 64), "not positive"},
      {"tokenizer",
       replace_string("tokenizer.ggml.model", "rwkv"),
       "\"tokenizer.ggml.model\" is \"rwkv\""},
      {"token types",
       {"tokenizer.ggml.token_type",
        [](GgufWriter& file) {
          file.add_i32s("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1});
        },
        ""},
       "has 2 elements, expected 300"},
      {"bos",
       replace_u32("tokenizer.ggml.bos_token_id", 300),
       "\"tokenizer.ggml.bos_token_id\" is 300"},
  };
  for (const Refused& refused : cases) {
    INFO(refused.what);
    const std::string message = refusal(edited(refused.edit));
    CHECK_THAT(message, Contains(refused.expected));
    CHECK_THAT(message, Contains("m.gguf: "));
  }
}

TEST_CASE("load_model: RoPE scaling of GGUF keys", "[engine][unit]") {
  const auto rope_of = [](const std::function<void(GgufWriter&)>& add) {
    const TempFolder folder;
    return load_model(folder.add("m.gguf", edited({"", add, ""})))->spec.ropes[0];
  };
  RopeScaling expected;
  expected.rule = RopeRule::kLinear;
  expected.factor = 4;
  CHECK(rope_of([](GgufWriter& file) { file.add_f32("llama.rope.scaling.factor", 4); }) ==
        make_rope(RopePairing::kAdjacent, 32, 10000, expected));
  CHECK(rope_of([](GgufWriter& file) { file.add_f32("llama.rope.scale_linear", 4); }) ==
        make_rope(RopePairing::kAdjacent, 32, 10000, expected));
  expected.rule = RopeRule::kYarn;
  expected.original_positions = 1024;
  expected.magnitude = yarn_magnitude(4) * 0.5;
  CHECK(rope_of([](GgufWriter& file) {
          file.add_string("llama.rope.scaling.type", "yarn");
          file.add_f32("llama.rope.scaling.factor", 4);
          file.add_u32("llama.rope.scaling.original_context_length", 1024);
          file.add_f32("llama.rope.scaling.attn_factor", 0.5f);
        }) == make_rope(RopePairing::kAdjacent, 32, 10000, expected));
  CHECK(rope_of([](GgufWriter& file) {
          file.add_string("llama.rope.scaling.type", "none");
          file.add_f32("llama.rope.scaling.factor", 4);
        }) == make_rope(RopePairing::kAdjacent, 32, 10000, {}));
}

// The bytes with the value of a key of the given type changed where it stands.
template <typename T>
std::string with_value(std::string bytes, const std::string& key, T value) {
  const size_t at = bytes.find(testing::gguf_string(key));
  REQUIRE(at != std::string::npos);
  return bytes.replace(at + 8 + key.size() + 4, sizeof(T), le_bytes(value));
}

TEST_CASE("load_model: a split GGUF", "[engine][unit]") {
  const TempFolder folder;
  const std::vector<std::string> parts = testing::split_gguf(testing::tiny_gguf(), 3);
  const auto name = [](int i) { return "m-0000" + std::to_string(i) + "-of-00003.gguf"; };
  const std::string path = folder.add(name(1), parts[0]);
  const auto refused = [&] { return load_error([&] { load_model(path); }); };
  CHECK_THAT(
      refused(),
      Contains("is split in 3 files; not in its folder: \"" + name(2) + "\", \"" + name(3) + "\""));
  folder.add(name(2), parts[1]);
  CHECK_THAT(refused(), Contains("not in its folder: \"" + name(3) + "\""));
  folder.add(name(3), parts[2]);
  const auto model = load_model(path);
  const auto whole = testing::make_tiny_model();
  for (size_t i = 0; i < 2; ++i)
    CHECK(decode(model->weights.layers[i].down) == decode(whole->weights.layers[i].down));
  CHECK(model->files.size() == 3);

  folder.add(name(3), with_value<uint16_t>(parts[2], "split.no", 1));
  CHECK_THAT(refused(), Contains(name(3) + ": says it is part 2 of 3, expected part 3 of 3"));
  folder.add(name(3), with_value<uint16_t>(parts[2], "split.count", 4));
  CHECK_THAT(refused(), Contains(name(3) + ": says it is part 3 of 4, expected part 3 of 3"));
  folder.add(name(3), parts[1]);
  CHECK_THAT(refused(), Contains(name(3) + ": says it is part 2 of 3"));
  folder.add(name(3), with_value<uint16_t>(parts[1], "split.no", 2));
  CHECK_THAT(refused(), Contains(name(3) + ": tensor") && Contains("is also in"));
  folder.add(name(3), parts[2].substr(0, parts[2].size() - 77));
  CHECK_THAT(refused(), Contains(name(3)) && Contains("77 bytes are missing"));
  folder.add(name(3), parts[2]);
  folder.add(name(1), with_value<int32_t>(parts[0], "split.tensors.count", 99));
  CHECK_THAT(refused(), Contains("hold 21 tensors, expected 99"));
  folder.add(name(1), parts[0]);
  CHECK_THAT(load_error([&] { load_model((folder.path() / name(2)).string()); }),
             Contains("is part 2 of a model split in 3 files; give the first one"));
  const std::string renamed = folder.add("other.gguf", parts[0]);
  CHECK_THAT(load_error([&] { load_model(renamed); }), Contains("give the first one"));
}

TEST_CASE("load_model: a vocabulary is not a model", "[engine][unit]") {
  GgufWriter file;
  file.add_string("general.architecture", "llama");
  CHECK_THAT(refusal(file.bytes()), Contains("m.gguf: has no tensors: it is a vocabulary"));
}

TEST_CASE("load_model: a refusal names every type that is not supported", "[engine][unit]") {
  const auto zeros = [](GgufWriter& file, const char* name, int32_t type, size_t bytes) {
    file.add_tensor(name, std::vector<int64_t>{128, 64}, type, std::string(bytes, '\0'));
  };
  Edit edit{"", {}, "blk.0.ffn_down.weight"};
  edit.add = [&](GgufWriter& file) { zeros(file, "blk.0.ffn_down.weight", 39, 64 * 4 * 17); };
  Edit again{"", {}, "blk.1.ffn_down.weight"};
  again.add = [&](GgufWriter& file) { zeros(file, "blk.1.ffn_down.weight", 40, 64 * 2 * 36); };
  const TempFolder folder;
  const std::string path = folder.add("m.gguf", edited(again, edited(edit)));
  std::vector<std::string> reasons;
  Refusals refusals = Refusals::collected(reasons);
  load_model(path, refusals);
  REQUIRE(reasons.size() == 2);
  CHECK_THAT(reasons[0],
             Contains("\"blk.0.ffn_down.weight\" is of type MXFP4 (id 39)") &&
                 Contains("F32, F16") && Contains("Q8_0 file"));
  CHECK_THAT(reasons[1], Contains("\"blk.1.ffn_down.weight\" is of type NVFP4 (id 40)"));
}

// ---- real files

TEST_CASE("load_model: the same model as GGUF and as HF folder", "[engine][unit]") {
  const auto gguf_path = testing::shared_path("models/needle-24m/needle-f16.gguf");
  const auto folder = testing::shared_path("models/needle-24m/hf");
  if (!gguf_path || !folder) {
    testing::skip("no needle-24m on this machine");
    return;
  }
  const auto gguf = load_model(*gguf_path);
  const auto hf = load_model(*folder);
  ModelSpec spec = hf->spec;
  CHECK(spec.ropes[0].pairing == RopePairing::kHalves);
  spec.ropes[0].pairing = RopePairing::kAdjacent;
  CHECK(spec.architecture == gguf->spec.architecture);
  CHECK(spec.vocab_size == gguf->spec.vocab_size);
  CHECK(spec.hidden_dim == gguf->spec.hidden_dim);
  CHECK(spec.max_positions == gguf->spec.max_positions);
  CHECK(spec.rms_eps == gguf->spec.rms_eps);
  CHECK(spec.tied_embedding == gguf->spec.tied_embedding);
  CHECK(spec.ropes == gguf->spec.ropes);
  REQUIRE(spec.layers.size() == gguf->spec.layers.size());
  CHECK(spec.layers[3].ffn_dim == gguf->spec.layers[3].ffn_dim);
  CHECK(spec.layers[3].heads.num_kv_heads == gguf->spec.layers[3].heads.num_kv_heads);
  CHECK(hf->num_parameters == gguf->num_parameters);
  CHECK(hf->eos_token_ids == gguf->eos_token_ids);
  CHECK(hf->chat_template == gguf->chat_template);
  CHECK(hf->vocabulary.tokens == gguf->vocabulary.tokens);
  CHECK(hf->vocabulary.bos == gguf->vocabulary.bos);
  CHECK(hf->vocabulary.add_bos == gguf->vocabulary.add_bos);
  CHECK(decode(hf->weights.output_norm) == decode(gguf->weights.output_norm));

  // Rows of q and k: GGUF has the two halves of a head interleaved.
  const auto row = [](const std::vector<float>& matrix, const WeightView& view, int64_t i) {
    return std::vector<float>(matrix.begin() + i * view.cols, matrix.begin() + (i + 1) * view.cols);
  };
  const WeightView& hf_k = hf->weights.layers[2].k;
  const WeightView& gguf_k = gguf->weights.layers[2].k;
  const std::vector<float> hf_values = decode(hf_k);
  const std::vector<float> gguf_values = decode(gguf_k);
  const int64_t head_dim = spec.layers[2].heads.head_dim;
  for (int64_t i = 0; i < hf_k.rows; ++i) {
    const int64_t head = i / head_dim * head_dim;
    const int64_t half = i % head_dim / (head_dim / 2);
    const int64_t interleaved = head + 2 * (i % (head_dim / 2)) + half;
    const auto expected = row(hf_values, hf_k, i);
    const auto got = row(gguf_values, gguf_k, interleaved);
    double worst = 0;
    for (size_t c = 0; c < got.size(); ++c)
      worst = std::max(worst, std::fabs(double{got[c]} - expected[c]));
    INFO("row " << i);
    CHECK(worst <= 1e-6);  // BF16 to F16 keeps all but the smallest values
  }
}

TEST_CASE("load_model: SmolLM2", "[engine][unit]") {
  const auto path = testing::smollm2_path();
  if (!path) {
    testing::skip("no SmolLM2 on this machine");
    return;
  }
  const auto model = load_model(*path);
  CHECK(model->spec.layers.size() == 30);
  CHECK(model->spec.layers[0].heads.num_heads == 9);
  CHECK(model->spec.layers[0].heads.num_kv_heads == 3);
  CHECK(model->spec.layers[0].heads.head_dim == 64);
  CHECK(model->spec.max_positions == 8192);
  CHECK(model->spec.tied_embedding);
  CHECK(model->weight_format == "Q4_1 + Q8_0");
  CHECK(model->num_parameters == 134515008);
  CHECK(model->vocabulary.pre == "smollm");
  CHECK(model->vocabulary.tokens.size() == 49152);
  CHECK(model->eos_token_ids == std::vector<int32_t>{2});
}

}  // namespace
}  // namespace headwater
