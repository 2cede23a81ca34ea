#include "engine/model/text_files.h"

#include <filesystem>
#include <system_error>

#include "engine/io/gguf.h"
#include "engine/io/json_object.h"
#include "engine/io/mapped_file.h"
#include "engine/model/vocabulary_gguf.h"
#include "engine/text/tokenizer_json.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

namespace fs = std::filesystem;

// A tokenizer.json with the tokenizer_config.json beside it, if there is one.
Vocabulary read_tokenizer_json(const fs::path& path) {
  const MappedFile tokenizer(path.string());
  const fs::path config_path = path.parent_path() / "tokenizer_config.json";
  if (!file_exists(config_path)) return load_tokenizer_json(tokenizer.text(), "", path.string());
  const MappedFile config(config_path.string());
  return load_tokenizer_json(tokenizer.text(), config.text(), path.string());
}

// A text, or a list of named texts of which "default" is taken.
std::string config_template(const JsonObject& config) {
  if (!config.is_list("chat_template")) return config.string_or("chat_template", "");
  for (const JsonObject& entry : config.objects("chat_template")) {
    if (entry.string("name") == "default") return entry.string("template");
  }
  throw LoadError(config.name() + ": \"chat_template\" has no entry named \"default\"");
}

// Throws LoadError: there is nothing at path.
bool is_folder(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw LoadError(path +
                    ": does not exist; expected a .gguf file, a tokenizer.json or a model folder");
  }
  return is_directory(status);
}

bool is_gguf(const MappedFile& file) { return file.text().starts_with("GGUF"); }

}  // namespace

Vocabulary read_hf_vocabulary(const std::string& folder) {
  const fs::path path = fs::path(folder) / "tokenizer.json";
  if (!file_exists(path)) {
    throw LoadError(folder + ": has no tokenizer; expected tokenizer.json");
  }
  return read_tokenizer_json(path);
}

std::string read_hf_chat_template(const std::string& folder) {
  constexpr int64_t kMaxBytes = 1 << 20;
  const fs::path file_path = fs::path(folder) / "chat_template.jinja";
  const fs::path config_path = fs::path(folder) / "tokenizer_config.json";
  std::string text;
  if (file_exists(file_path)) {
    text = MappedFile(file_path.string()).text();
  } else if (file_exists(config_path)) {
    const MappedFile config(config_path.string());
    text = config_template(JsonObject::parse(config.text(), config_path.string()));
  }
  if (std::ssize(text) > kMaxBytes) {
    throw LoadError(folder + ": the chat template has " + std::to_string(text.size()) +
                    " bytes, expected at most " + std::to_string(kMaxBytes));
  }
  return text;
}

Vocabulary read_vocabulary(const std::string& path) {
  if (is_folder(path)) return read_hf_vocabulary(path);
  const MappedFile mapped(path);
  if (!is_gguf(mapped)) return read_tokenizer_json(path);
  return read_gguf_vocabulary(GgufFile::parse(mapped.bytes(), path));
}

std::string read_chat_template(const std::string& path) {
  if (is_folder(path)) return read_hf_chat_template(path);
  const MappedFile mapped(path);
  if (!is_gguf(mapped)) return read_hf_chat_template(fs::path(path).parent_path().string());
  const GgufFile file = GgufFile::parse(mapped.bytes(), path);
  return std::string(file.string("tokenizer.chat_template").value_or(""));
}

}  // namespace headwater
