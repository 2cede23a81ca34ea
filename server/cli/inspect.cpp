#include "server/cli/inspect.h"

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "engine/io/quote.h"
#include "kernels/base/status.h"
#include "server/cli/inspect_heads.h"
#include "server/cli/inspect_report.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

using Json = nlohmann::ordered_json;

// Bytes of a file as JSON text: what is not valid UTF-8 becomes U+FFFD.
std::string dump(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string megabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f MB", static_cast<double>(bytes) * 1e-6);
  return text;
}

// A name from a file as it is, or quoted where that would send something else than printable ASCII
// to the terminal.
std::string printable(const std::string& name) {
  const std::string quoted = quote(name);
  return quoted == "\"" + name + "\"" ? name : quoted;
}

void print_fields(const Json& object, std::ostream& out) {
  for (const auto& [name, value] : object.items()) {
    const std::string key = printable(name);
    // Dumping as JSON escapes a file's control characters.
    out << "  " << key << std::string(key.size() < 40 ? 40 - key.size() : 1, ' ') << dump(value)
        << "\n";
  }
}

void print_tensors(const Json& report, std::ostream& out) {
  out << "\ntensors\n";
  for (const Json& tensor : report["tensors"]) {
    const std::string name = quote(tensor["name"].get<std::string>());
    const std::string type = tensor["type"].get<std::string>();
    out << "  " << name << std::string(name.size() < 40 ? 40 - name.size() : 1, ' ') << type
        << std::string(type.size() < 8 ? 8 - type.size() : 1, ' ') << dump(tensor["shape"]) << "\n";
  }
  out << "\ntypes\n";
  for (const Json& type : report["types"]) {
    out << "  " << type["type"].get<std::string>() << ": " << type["tensors"] << " tensors, "
        << megabytes(type["bytes"].get<int64_t>())
        << (type["supported"].get<bool>() ? "" : ", not supported") << "\n";
  }
}

void print_text(const InspectReport& report, std::ostream& out) {
  const Json& fields = report.fields;
  out << fields["path"].get<std::string>();
  if (fields.contains("container")) out << ": " << fields["container"].get<std::string>();
  if (fields.contains("file_bytes")) out << ", " << megabytes(fields["file_bytes"].get<int64_t>());
  if (fields.contains("files") && fields["files"].size() > 1) {
    out << " in " << fields["files"].size() << " files";
  }
  out << "\n";
  for (const char* section : {"model", "tokenizer", "chat_template", "metadata"}) {
    if (!fields.contains(section)) continue;
    out << "\n" << section << "\n";
    print_fields(fields[section], out);
  }
  if (fields.contains("tensors")) print_tensors(fields, out);
  if (fields.contains("attention")) print_heads(fields["attention"], out);
  out << "\n";
  for (const auto& [key, what] :
       {std::pair("has_tokenizer", "tokenizer"), std::pair("has_chat_template", "chat template")}) {
    out << what << ": " << (fields.value(key, false) ? "present" : "not present") << "\n";
  }
  for (const std::string& sentence : report.warnings) out << "note: " << dump(sentence) << "\n";
  if (report.refused.empty()) {
    out << "This model can be served.\n";
  } else {
    out << "This model would be refused:\n";
    for (const std::string& sentence : report.refused) out << "  " << sentence << "\n";
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
  InspectReport report = make_inspect_report(path, attention);
  if (json) {
    report.fields["warnings"] = report.warnings;
    report.fields["refused"] = report.refused;
    out << dump(report.fields, 1) << "\n";
  } else {
    print_text(report, out);
  }
  return report.refused.empty() ? 0 : 1;
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
