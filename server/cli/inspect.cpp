#include "server/cli/inspect.h"

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "engine/io/gguf.h"
#include "engine/io/json_object.h"
#include "engine/io/mapped_file.h"
#include "engine/io/quote.h"
#include "engine/model/hf_model.h"
#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"
#include "server/cli/inspect_heads.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxShownElements = 8;
constexpr size_t kMaxShownText = 200;

// Bytes of a file as JSON text: what is not valid UTF-8 becomes U+FFFD.
std::string dump(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string shortened(std::string_view text) {
  if (text.size() <= kMaxShownText) return std::string(text);
  return std::string(text.substr(0, kMaxShownText)) + "... (" + std::to_string(text.size()) +
         " bytes)";
}

std::string megabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MB", static_cast<double>(bytes) * 1e-6);
  return text;
}

// ---- what the files say, whether or not they can be served

Json scalar(const GgufFile& file, std::string_view key, const GgufValue& value) {
  switch (value.type) {
    case GgufType::kString:
      return shortened(*file.string(key));
    case GgufType::kBool:
      return *file.boolean(key);
    case GgufType::kF32:
    case GgufType::kF64:
      return *file.number(key);
    default:
      return *file.integer(key, {INT64_MIN, INT64_MAX});
  }
}

Json gguf_value(const GgufFile& file, std::string_view key, const GgufValue& value) {
  if (!value.is_array) return scalar(file, key, value);
  if (value.count <= kMaxShownElements && value.type == GgufType::kString) {
    return *file.strings(key);
  }
  return std::to_string(value.count) + " x " + std::string(gguf_type_name(value.type));
}

void describe_tensors(const TensorSet& tensors, Json& report, std::vector<std::string>& refused) {
  struct Total {
    int64_t count = 0;
    int64_t bytes = 0;
    const StoredTensor* unsupported = nullptr;  // the first one
  };
  std::map<std::string, Total> totals;
  Json list = Json::array();
  for (const auto& [name, tensor] : tensors.tensors()) {
    const auto bytes = static_cast<int64_t>(tensor.data.size());
    list.push_back(
        {{"name", name}, {"type", tensor.type}, {"shape", tensor.shape}, {"bytes", bytes}});
    Total& total = totals[tensor.type];
    ++total.count;
    total.bytes += bytes;
    if (!tensor.format && total.unsupported == nullptr) total.unsupported = &tensor;
  }
  Json types = Json::array();
  for (const auto& [type, total] : totals) {
    types.push_back({{"type", type}, {"tensors", total.count}, {"bytes", total.bytes}});
    if (total.unsupported == nullptr) continue;
    refused.push_back(std::to_string(total.count) + " tensors are of type " + type +
                      ", which is not supported, first " + quote(total.unsupported->name));
  }
  report["types"] = std::move(types);
  report["tensors"] = std::move(list);
}

void describe_gguf(const std::string& path, Json& report, std::vector<std::string>& refused) {
  const MappedFile mapped(path);
  report["file_bytes"] = mapped.bytes().size();
  const GgufFile file = GgufFile::parse(mapped.bytes(), path);
  report["container"] = "GGUF version " + std::to_string(file.version());
  Json& metadata = report["metadata"] = Json::object();
  for (const auto& [key, value] : file.metadata()) {
    metadata[std::string(key)] = gguf_value(file, key, value);
  }
  report["has_tokenizer"] = file.find("tokenizer.ggml.tokens") != nullptr;
  report["has_chat_template"] = file.find("tokenizer.chat_template") != nullptr;
  TensorSet tensors;
  tensors.add(file);
  describe_tensors(tensors, report, refused);
}

void describe_folder(const std::string& path, Json& report, std::vector<std::string>& refused) {
  namespace fs = std::filesystem;
  report["container"] = "Hugging Face folder";
  report["has_tokenizer"] = fs::exists(fs::path(path) / "tokenizer.json");
  const std::string config_path = (fs::path(path) / "config.json").string();
  const MappedFile config(config_path);
  const std::string_view text(reinterpret_cast<const char*>(config.bytes().data()),
                              config.bytes().size());
  report["metadata"] = Json::parse(parse_json(text, config_path).dump());
  std::vector<MappedFile> files;
  const TensorSet tensors = open_hf_tensors(path, files);
  int64_t file_bytes = 0;
  for (const MappedFile& file : files) file_bytes += static_cast<int64_t>(file.bytes().size());
  report["file_bytes"] = file_bytes;
  describe_tensors(tensors, report, refused);
}

// ---- what the engine would make of them

int64_t kv_bytes_per_token(const ModelSpec& spec) {
  constexpr int64_t kF16Bytes = 2;
  int64_t bytes = 0;
  for (const LayerSpec& layer : spec.layers) {
    bytes += 2 * kF16Bytes * layer.heads.num_kv_heads * layer.heads.head_dim;
  }
  return bytes;
}

void describe_model(const LoadedModel& model, Json& report) {
  const ModelSpec& spec = model.spec;
  const HeadShape& heads = spec.layers.front().heads;
  report["model"] = {
      {"name", model.name},
      {"architecture", spec.architecture},
      {"parameters", model.num_parameters},
      {"weight_bytes", model.weight_bytes},
      {"weight_format", model.weight_format},
      {"layers", spec.layers.size()},
      {"hidden_dim", spec.hidden_dim},
      {"query_heads", heads.num_heads},
      {"kv_heads", heads.num_kv_heads},
      {"head_dim", heads.head_dim},
      {"ffn_dim", spec.layers.front().ffn_dim},
      {"vocab_size", spec.vocab_size},
      {"tied_embedding", spec.tied_embedding},
      {"trained_context_tokens", spec.max_positions},
      {"kv_bytes_per_token_f16", kv_bytes_per_token(spec)},
      {"tokenizer", model.vocabulary.model + " " + model.vocabulary.pre},
      {"tokens", model.vocabulary.tokens.size()},
      {"eos_token_ids", model.eos_token_ids},
  };
  report["has_chat_template"] = !model.chat_template.empty();
}

// Runs one stage of loading; a refusal becomes a sentence of the report.
bool attempt(std::vector<std::string>& refused, const std::function<void()>& stage) {
  try {
    stage();
    return true;
  } catch (const LoadError& error) {
    refused.emplace_back(error.what());
  } catch (const ConfigError& error) {
    refused.emplace_back(error.what());
  }
  return false;
}

Json make_report(const std::string& path,
                 const EngineConfig* attention,
                 std::vector<std::string>& refused) {
  Json report = {{"path", path}};
  const bool is_folder = std::filesystem::is_directory(path);
  const bool readable = attempt(refused, [&] {
    is_folder ? describe_folder(path, report, refused) : describe_gguf(path, report, refused);
  });
  if (!readable) return report;
  std::unique_ptr<LoadedModel> model;
  if (!attempt(refused, [&] { model = load_model(path); })) return report;
  describe_model(*model, report);
  if (attention != nullptr)
    attempt(refused, [&] {
      report["attention"] = describe_heads(plan_attention(*attention, *model), *model);
    });
  attempt(refused, [&] { make_tokenizer(std::move(model->vocabulary)); });
  if (!model->chat_template.empty()) {
    attempt(refused, [&] { ChatTemplate(model->chat_template, path); });
  }
  return report;
}

// ---- as text

void print_fields(const Json& object, std::ostream& out) {
  for (const auto& [key, value] : object.items()) {
    // Quoting keeps a file's control characters off the terminal.
    out << "  " << key << std::string(key.size() < 40 ? 40 - key.size() : 1, ' ') << dump(value)
        << "\n";
  }
}

void print_text(const Json& report, const std::vector<std::string>& refused, std::ostream& out) {
  out << report["path"].get<std::string>();
  if (report.contains("container")) out << ": " << report["container"].get<std::string>();
  if (report.contains("file_bytes")) out << ", " << megabytes(report["file_bytes"].get<int64_t>());
  out << "\n";
  for (const char* section : {"model", "metadata"}) {
    if (!report.contains(section)) continue;
    out << "\n" << section << "\n";
    print_fields(report[section], out);
  }
  if (report.contains("tensors")) {
    out << "\ntensors\n";
    for (const Json& tensor : report["tensors"]) {
      const std::string name = quote(tensor["name"].get<std::string>());
      const std::string type = tensor["type"].get<std::string>();
      out << "  " << name << std::string(name.size() < 40 ? 40 - name.size() : 1, ' ') << type
          << std::string(type.size() < 8 ? 8 - type.size() : 1, ' ') << dump(tensor["shape"])
          << "\n";
    }
    out << "\ntypes\n";
    for (const Json& type : report["types"]) {
      out << "  " << type["type"].get<std::string>() << ": " << type["tensors"] << " tensors, "
          << megabytes(type["bytes"].get<int64_t>()) << "\n";
    }
  }
  if (report.contains("attention")) print_heads(report["attention"], out);
  for (const auto& [key, what] :
       {std::pair("has_tokenizer", "tokenizer"), std::pair("has_chat_template", "chat template")}) {
    out << what << ": " << (report.value(key, false) ? "present" : "not present") << "\n";
  }
  if (refused.empty()) {
    out << "This model can be served.\n";
  } else {
    out << "This model would be refused:\n";
    for (const std::string& sentence : refused) out << "  " << sentence << "\n";
  }
}

struct InspectConfig {
  bool json = false;
  EngineConfig engine;  // its attention
};

void describe_inspect(InspectConfig& config, OptionTable& visit) {
  visit("json", config.json, "one JSON object instead of text");
  config.engine.attention.clear();
  visit("head-table",
        config.engine.head_table,
        "show what this head table keeps and saves; auto = the one shipped for the model");
  visit("attention",
        config.engine.attention,
        "policy that runs the table; default: the one that it was made for");
  visit("retrieval-ratio",
        config.engine.retrieval_ratio,
        "share of heads that keep everything, by the table's ranking; -1 = as the table says");
}

}  // namespace

int inspect(const std::string& path, bool json, std::ostream& out, const EngineConfig* attention) {
  std::vector<std::string> refused;
  Json report = make_report(path, attention, refused);
  if (json) {
    report["refused"] = refused;
    out << dump(report, 1) << "\n";
  } else {
    print_text(report, refused, out);
  }
  return refused.empty() ? 0 : 1;
}

int run_inspect(const std::vector<std::string>& args) {
  InspectConfig config;
  OptionTable table;
  describe_inspect(config, table);
  const std::vector<std::string> words = apply_flags(table, args);
  if (words.size() != 1) {
    throw ConfigError("inspect takes one model, got " + std::to_string(words.size()) +
                      " words; expected: headwater inspect MODEL");
  }
  EngineConfig& engine = config.engine;
  const bool wants_heads = !engine.attention.empty() || !engine.head_table.empty();
  if (engine.attention.empty()) engine.attention = "auto";
  return inspect(words[0], config.json, std::cout, wants_heads ? &engine : nullptr);
}

std::string inspect_help() {
  InspectConfig config;
  OptionTable table;
  describe_inspect(config, table);
  return "Show what a model's files hold and whether they can be served.\n"
         "\n"
         "Usage: headwater inspect MODEL [options]    a .gguf file or a Hugging Face folder\n"
         "\n"
         "Examples\n"
         "  headwater inspect model.gguf\n"
         "  headwater inspect model-folder --json\n"
         "  headwater inspect model.gguf --head-table auto\n"
         "      which heads keep everything, and what that saves\n"
         "\n" +
         format_options(
             table,
             {{"Output", {"json"}}, {"Attention", {"head-table", "attention", "retrieval-ratio"}}});
}

}  // namespace headwater::cli
