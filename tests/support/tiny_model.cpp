#include "tests/support/tiny_model.h"

#include <array>
#include <cmath>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support/gguf_writer.h"
#include "tests/support/quantize.h"
#include "tests/support/random.h"
#include "tests/support/temp_file.h"

namespace headwater::testing {
namespace {

constexpr std::string_view kTemplate =
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
constexpr std::string_view kLetters = "etaoinshr";

// The printable character byte-level BPE writes for a byte, in UTF-8.
std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> out;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const int code = printable ? byte : next++;
    auto& text = out[static_cast<size_t>(byte)];
    if (code < 0x80) {
      text = static_cast<char>(code);
    } else {
      text = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    }
  }
  return out;
}

}  // namespace

void add_tiny_vocabulary(GgufWriter& file) {
  constexpr int32_t kNormal = 1;
  constexpr int32_t kControl = 3;
  std::vector<std::string> tokens;
  std::vector<int32_t> kinds;
  std::vector<std::string> merges;
  for (const std::string& character : byte_characters()) tokens.push_back(character);
  kinds.assign(tokens.size(), kNormal);
  for (const char* text : {"<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|pad|>"}) {
    tokens.emplace_back(text);
    kinds.push_back(kControl);
  }
  for (size_t i = 0; tokens.size() < kTinyVocabSize; ++i) {
    const char left = kLetters[i / kLetters.size()];
    const char right = kLetters[i % kLetters.size()];
    tokens.push_back({left, right});
    kinds.push_back(kNormal);
    merges.push_back({left, ' ', right});
  }
  file.add_string("tokenizer.ggml.model", "gpt2");
  file.add_string("tokenizer.ggml.pre", "gpt-2");
  file.add_strings("tokenizer.ggml.tokens", tokens);
  file.add_i32s("tokenizer.ggml.token_type", kinds);
  file.add_strings("tokenizer.ggml.merges", merges);
  file.add_u32("tokenizer.ggml.bos_token_id", kTinyBos);
  file.add_u32("tokenizer.ggml.eos_token_id", kTinyEos);
  file.add_u32("tokenizer.ggml.eot_token_id", kTinyImEnd);
  file.add_u32("tokenizer.ggml.padding_token_id", kTinyPad);
  file.add_bool("tokenizer.ggml.add_bos_token", true);
  file.add_string("tokenizer.chat_template", kTemplate);
}

namespace {

void add_spec(GgufWriter& file, const TinyModelOptions& options) {
  const auto u32 = [&](const char* key, int32_t value) {
    file.add_u32(std::string("llama.") + key, static_cast<uint32_t>(value));
  };
  file.add_string("general.architecture", "llama");
  file.add_string("general.name", "tiny");
  u32("block_count", options.num_layers);
  u32("context_length", options.max_positions);
  u32("embedding_length", options.hidden_dim);
  u32("feed_forward_length", options.ffn_dim);
  u32("attention.head_count", options.num_heads);
  u32("attention.head_count_kv", options.num_kv_heads);
  u32("attention.key_length", options.head_dim);
  u32("attention.value_length", options.head_dim);
  u32("rope.dimension_count", options.head_dim);
  file.add_f32("llama.rope.freq_base", options.rope_base);
  file.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

class WeightWriter {
 public:
  WeightWriter(GgufWriter& file, uint64_t seed) : file_(file), random_(seed) {}

  void matrix(
      const std::string& name, int64_t rows, int64_t cols, QuantFormat format, float gain = 1.0f) {
    const float deviation = gain / std::sqrt(static_cast<float>(cols));
    const QuantTraits& traits = quant_traits(format);
    std::string data = traits.block_elements == 256
                           ? random_k_blocks(format, rows * cols, deviation, random_.next())
                           : quantize(format, random_.values(rows * cols, deviation));
    file_.add_tensor(name + ".weight", std::array{cols, rows}, traits.ggml_type, std::move(data));
  }
  void vector(const std::string& name, int64_t size, float mean, float deviation) {
    std::vector<float> values = random_.values(size, deviation);
    for (float& value : values) value += mean;
    file_.add_tensor(name, std::array{size}, 0, quantize(QuantFormat::kF32, values));
  }

 private:
  GgufWriter& file_;
  Random random_;
};

void add_layer(WeightWriter& weights, const TinyModelOptions& options, int32_t layer) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  const int64_t hidden = options.hidden_dim;
  const int64_t q_rows = int64_t{options.num_heads} * options.head_dim;
  const int64_t kv_rows = int64_t{options.num_kv_heads} * options.head_dim;
  weights.vector(prefix + "attn_norm.weight", hidden, 1.0f, 0.1f);
  weights.matrix(prefix + "attn_q", q_rows, hidden, options.format, 2.0f);
  weights.matrix(prefix + "attn_k", kv_rows, hidden, options.format, 2.0f);
  weights.matrix(prefix + "attn_v", kv_rows, hidden, options.format);
  weights.matrix(prefix + "attn_output", hidden, q_rows, options.format);
  if (options.attention_bias) {
    weights.vector(prefix + "attn_q.bias", q_rows, 0.0f, 0.2f);
    weights.vector(prefix + "attn_k.bias", kv_rows, 0.0f, 0.2f);
    weights.vector(prefix + "attn_v.bias", kv_rows, 0.0f, 0.2f);
    weights.vector(prefix + "attn_output.bias", hidden, 0.0f, 0.2f);
  }
  weights.vector(prefix + "ffn_norm.weight", hidden, 1.0f, 0.1f);
  weights.matrix(prefix + "ffn_gate", options.ffn_dim, hidden, options.format);
  weights.matrix(prefix + "ffn_up", options.ffn_dim, hidden, options.format);
  weights.matrix(prefix + "ffn_down", hidden, options.ffn_dim, options.format);
}

}  // namespace

std::string tiny_gguf(const TinyModelOptions& options) {
  GgufWriter file;
  add_spec(file, options);
  add_tiny_vocabulary(file);
  WeightWriter weights(file, options.seed);
  const auto embedding_gain = std::sqrt(static_cast<float>(options.hidden_dim));
  weights.matrix("token_embd",
                 kTinyVocabSize,
                 options.hidden_dim,
                 options.embedding_format,
                 options.tied_embedding ? 3.0f : embedding_gain);
  weights.vector("output_norm.weight", options.hidden_dim, 1.0f, 0.1f);
  if (!options.tied_embedding) {
    weights.matrix("output", kTinyVocabSize, options.hidden_dim, options.embedding_format, 3.0f);
  }
  if (options.rope_divisors) {
    weights.vector("rope_freqs.weight", options.head_dim / 2, 2.0f, 0.3f);
  }
  for (int32_t i = 0; i < options.num_layers; ++i) add_layer(weights, options, i);
  return file.bytes();
}

void write_tiny_gguf(const std::string& path, const TinyModelOptions& options) {
  write_file(path, tiny_gguf(options));
}

std::unique_ptr<LoadedModel> make_tiny_model(const TinyModelOptions& options) {
  const TempFolder folder;
  return load_model(folder.add("tiny.gguf", tiny_gguf(options)));
}

}  // namespace headwater::testing
