// make_seeds FOLDER: small valid inputs, one folder per fuzz target, for the fuzzers to start from.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/io/mapped_file.h"
#include "engine/model/arch/arch_table.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temp_file.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"

namespace headwater::testing {
namespace {

struct Seed {
  const char* target;
  std::string name;
  std::string bytes;
};

TinyModelOptions smallest(QuantFormat format) {
  TinyModelOptions options;
  options.num_layers = 1;
  options.hidden_dim = 32;
  options.num_heads = 1;
  options.num_kv_heads = 1;
  options.head_dim = 32;
  options.ffn_dim = 32;
  options.format = format;
  options.embedding_format = QuantFormat::kQ4_0;
  options.tied_embedding = true;
  options.rope_divisors = true;
  return options;
}

std::string mixed_metadata() {
  GgufWriter file;
  file.set_alignment(64);
  file.add_bool("flag", true);
  file.add_f32("scale", 0.5f);
  file.add_strings("names", std::vector<std::string>{"a", "bc"});
  file.add_i32s("numbers", std::vector<int32_t>{1, 2});
  file.add_tensor("t", std::vector<int64_t>{32, 2}, 8, std::string(68, '\1'));
  file.add_tensor("u", std::vector<int64_t>{3}, 0, std::string(12, '\2'));
  return file.bytes();
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// The file with its keys under another architecture's name, lists cut to a few elements, and only
// as many tensors as stay small: what a real file's header looks like, in a few thousand bytes.
std::string renamed(std::span<const std::byte> bytes, std::string_view architecture) {
  constexpr int64_t kMaxElements = 12;
  constexpr int64_t kMaxTensorBytes = 8192;
  const GgufFile file = GgufFile::parse(bytes, "seed");
  const std::string prefix = std::string(*file.string("general.architecture")) + ".";
  GgufWriter out;
  for (const auto& [key, value] : file.metadata()) {
    const std::string name = key.starts_with(prefix) ? std::string(architecture) + "." +
                                                           std::string(key.substr(prefix.size()))
                                                     : std::string(key);
    const std::string data(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
    if (key == "general.architecture") {
      out.add_string(key, architecture);
    } else if (!value.is_array) {
      out.add_raw(name, value.type, data);
    } else if (value.type == GgufType::kString) {
      const auto texts = *file.strings(key);
      const auto shown = std::min<size_t>(texts.size(), kMaxElements);
      out.add_strings(name, std::vector<std::string>(texts.begin(), texts.begin() + shown));
    } else {
      const int64_t shown = std::min(value.count, kMaxElements);
      const auto element_bytes =
          static_cast<int64_t>(data.size()) / std::max<int64_t>(value.count, 1);
      out.add_raw(name,
                  GgufType::kArray,
                  le_bytes(static_cast<int32_t>(value.type)) +
                      le_bytes(static_cast<uint64_t>(shown)) +
                      data.substr(0, static_cast<size_t>(shown * element_bytes)));
    }
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.num_bytes > kMaxTensorBytes) continue;
    out.add_tensor(tensor.name,
                   std::span(tensor.ne).first(static_cast<size_t>(tensor.num_dims)),
                   tensor.type->id,
                   {reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size()});
  }
  return out.bytes();
}

std::string two_tensors() {
  SafetensorsWriter file;
  file.add_tensor("model.norm.weight", "F32", {2}, std::string(8, '\1'));
  file.add_tensor("lm_head.weight", "BF16", {2, 1}, std::string(4, '\2'));
  return file.bytes();
}

// As fuzz_vocabulary reads it: records and the text to encode, split by bytes 0xFF.
std::string vocabulary(char kind,
                       const std::vector<std::string>& records,
                       const std::string& text) {
  std::string out(1, kind);
  for (const std::string& record : records) out += record + '\xFF';
  return out + text;
}

std::string head_table() {
  return R"({"format": "headwater.head_table/1", "method": "razor", "granularity": "query_head",
    "model": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32, "fingerprint": "0123456789abcdef"},
    "classes": {"a": {"sinks": 4, "recent": 64, "growth": 0.5, "growth_offset": -1, "block": 16},
                "b": {"recent": 9, "block": 16, "shard": {"stride": 3, "phase": 1}},
                "c": {"recent": 32, "compensate": true}},
    "heads": [["full", "compressed", "a", "b"], ["c", "full", "full", "full"]],
    "ranking": [[0, 3], [1, 1]], "scores": {"echo": [[1, 2, 3, 4], [0, 0, 0, 1e-9]]},
    "calibration": {"tokens": 4, "data": "none"}})";
}

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// Real files where the machine has them: headers, configurations and templates.
void add_real_files(std::vector<Seed>& seeds) {
  const auto add_folder = [&](const char* target, const std::string& relative, const char* end) {
    const auto folder = shared_path(relative);
    if (!folder) return;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(*folder)) {
      constexpr uintmax_t kMaxBytes = 65536;  // -max_len of run.sh
      if (!entry.is_regular_file() || !entry.path().string().ends_with(end)) continue;
      if (entry.file_size() > kMaxBytes) continue;
      const MappedFile file(entry.path());
      seeds.push_back({target, entry.path().filename(), text_of(file)});
    }
  };
  add_folder("fuzz_chat_template", "data/templates", ".jinja");
  add_folder("fuzz_safetensors", "models", "config.json");
  const MappedFile needle(HW_SOURCE_DIR "/tests/data/needle-24m-q8_0.gguf");
  seeds.push_back({"fuzz_gguf", "needle", renamed(needle.bytes(), "llama")});
}

std::vector<Seed> make_seeds() {
  std::vector<Seed> seeds = {
      {"fuzz_gguf", "mixed", mixed_metadata()},
      {"fuzz_gguf", "llama_f16", tiny_gguf(smallest(QuantFormat::kF16))},
      {"fuzz_gguf", "llama_q8_0", tiny_gguf(smallest(QuantFormat::kQ8_0))},
      {"fuzz_head_table", "native", head_table()},
      {"fuzz_head_table", "duo", "0.5\t1\n0.25\t0.75\n"},
      {"fuzz_head_table", "moa", R"({"alphas": [[0, 64], [-8, 0]], "betas": [[1, 0], [0.5, 0]]})"},
      {"fuzz_safetensors", "tensors", two_tensors()},
      {"fuzz_safetensors",
       "index",
       R"({"metadata":{"total_size":8},"weight_map":{"a":"m.safetensors"}})"},
      {"fuzz_safetensors",
       "config",
       R"({"model_type":"llama","hidden_act":"silu","vocab_size":300,"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,"rms_norm_eps":1e-6,"max_position_embeddings":8192,"rope_theta":500000.0,"rope_scaling":{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":2048,"mscale":1.0,"mscale_all_dim":1.0}})"},
      {"fuzz_config",
       "gemma3",
       R"({"model_type":"gemma3","text_config":{"hidden_size":48,"intermediate_size":64,"num_hidden_layers":6,"head_dim":16,"num_attention_heads":4,"num_key_value_heads":4,"query_pre_attn_scalar":16,"sliding_window":16,"sliding_window_pattern":3,"rope_local_base_freq":10000.0,"rope_scaling":{"rope_type":"linear","factor":8.0}}})"},
      {"fuzz_config",
       "gemma2",
       R"({"hidden_activation":"gelu_pytorch_tanh","vocab_size":300,"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"rms_norm_eps":1e-6,"max_position_embeddings":8192,"attn_logit_softcapping":50.0,"final_logit_softcapping":null,"layer_types":["full_attention","sliding_attention"]})"},
      {"fuzz_config",
       "phi3",
       R"({"hidden_act":"silu","vocab_size":300,"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"rms_norm_eps":1e-6,"max_position_embeddings":8192,"original_max_position_embeddings":64,"partial_rotary_factor":0.5,"sliding_window":40,"rope_scaling":{"type":"longrope","short_factor":[1,1,1,1],"long_factor":[2,2.5,3,4],"attention_factor":1.1}})"},
      {"fuzz_config",
       "smollm3",
       R"({"hidden_act":"silu","vocab_size":300,"hidden_size":64,"intermediate_size":128,"num_hidden_layers":4,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,"rms_norm_eps":1e-6,"max_position_embeddings":8192,"no_rope_layers":[1,1,1,0],"use_sliding_window":true,"max_window_layers":1,"sliding_window":16,"attention_bias":true,"embedding_multiplier":1.0,"rope_parameters":{"rope_type":"llama3","rope_theta":1e6,"factor":8.0,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":2048}})"},
      {"fuzz_chat_template",
       "chatml",
       "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>\n{% "
       "endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"},
      {"fuzz_tokenizer_json",
       "bpe",
       R"({"version":"1.0","added_tokens":[{"id":4,"content":"<|eos|>","special":true,"lstrip":false,"rstrip":false,"normalized":false,"single_word":false}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"c":3},"merges":["a b"]}})"},
      {"fuzz_tokenizer_json",
       "unigram",
       R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":5,"content":"<m>","lstrip":true,"single_word":true,"normalized":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}]},"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"first","split":true},"decoder":{"type":"Metaspace","replacement":"_"},"post_processor":{"type":"RobertaProcessing","sep":["b",2],"cls":["a",1]},"model":{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0],["a",-1.5],["b",-2],["ab",-2.5],["<0xC3>",0]]}})"},
      {"fuzz_tokenizer_json",
       "splits",
       R"({"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|(?i:'s)|[^\\s]+"},"behavior":"MergedWithNext","invert":false},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Contiguous"},{"type":"Whitespace"}]},"normalizer":{"type":"Strip"},"decoder":{"type":"Fuse"},"model":{"type":"BPE","unk_token":"a","fuse_unk":true,"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}})"},
      {"fuzz_vocabulary",
       "spm",
       vocabulary(0x5A, {"\1\4<unk>", "\10\4a", "\10\3\u2581", "\10\2\u2581a"}, "a ab\u4F60")},
      {"fuzz_vocabulary",
       "unigram",
       vocabulary(0x13, {"\1\4<unk>", "\10\4a", "\10\3b", "\10\2ab"}, "abba xx")},
      {"fuzz_vocabulary",
       "bpe",
       vocabulary(4, {"\2\1<s>", "\10\1ab", "\10\1a", "\10\1b", "\7\1a b"}, "abab <s>")},
      {"fuzz_request_json",
       "chat",
       R"({"model":"m","messages":[{"role":"user","content":"Hi"}],"max_tokens":5,"temperature":0.5,"stream":true,"stop":["x"],"logprobs":true,"top_logprobs":3})"},
      {"fuzz_request_json",
       "completion",
       R"({"model":"m","prompt":["a",[1,2]],"n":2,"logit_bias":{"5":-1},"echo":true,"logprobs":1,"seed":7})"},
  };
  for (const Arch* arch : arch_table()) {
    if (arch->gguf_name.empty()) continue;
    const std::string tiny = tiny_gguf(smallest(QuantFormat::kQ5_0));
    seeds.push_back({"fuzz_gguf",
                     "renamed_" + std::string(arch->gguf_name),
                     renamed(bytes_of(tiny), arch->gguf_name)});
  }
  add_real_files(seeds);
  return seeds;
}

}  // namespace
}  // namespace headwater::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_seeds FOLDER\n";
    return 2;
  }
  for (const auto& [target, name, bytes] : headwater::testing::make_seeds()) {
    const std::filesystem::path folder = std::filesystem::path(argv[1]) / target;
    std::filesystem::create_directories(folder);
    headwater::testing::write_file(folder / name, bytes);
  }
}
