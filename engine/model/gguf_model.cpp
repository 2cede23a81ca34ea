#include "engine/model/gguf_model.h"

#include <cstdio>
#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/io/quote.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/vocabulary_gguf.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr int64_t kMaxSplits = 1024;

// "-00002-of-00007.gguf", counted from 1.
std::string split_suffix(int64_t idx, int64_t count) {
  char text[40];
  std::snprintf(
      text, sizeof(text), "-%05d-of-%05d.gguf", static_cast<int>(idx + 1), static_cast<int>(count));
  return text;
}

GgufFile open(const std::string& path, std::vector<MappedFile>& files) {
  files.emplace_back(path);
  return GgufFile::parse(files.back().bytes(), path);
}

// The first file alone holds the model's metadata; each holds some of the tensors.
void add_splits(const GgufFile& first,
                int64_t count,
                std::vector<MappedFile>& files,
                TensorSet& tensors) {
  const std::string& path = first.name();
  const std::string suffix = split_suffix(0, count);
  if (!path.ends_with(suffix) || first.integer("split.no").value_or(0) != 0) {
    throw LoadError(path + ": is a part of a model split in " + std::to_string(count) +
                    " files; give the first one, whose name ends in " + suffix);
  }
  const std::string prefix = path.substr(0, path.size() - suffix.size());
  for (int64_t i = 1; i < count; ++i) {
    const GgufFile part = open(prefix + split_suffix(i, count), files);
    const int64_t number = part.required_integer("split.no");
    if (number != i || part.required_integer("split.count") != count) {
      throw LoadError(part.name() + ": says it is part " + std::to_string(number + 1) +
                      ", expected part " + std::to_string(i + 1) + " of " + std::to_string(count));
    }
    tensors.add(part);
  }
  const int64_t num_tensors = first.required_integer("split.tensors.count");
  if (num_tensors != std::ssize(tensors.tensors())) {
    throw LoadError(path + ": the parts hold " + std::to_string(tensors.tensors().size()) +
                    " tensors, expected " + std::to_string(num_tensors) +
                    " by \"split.tensors.count\"");
  }
}

}  // namespace

std::unique_ptr<LoadedModel> load_gguf_model(const std::string& path) {
  auto model = std::make_unique<LoadedModel>();
  model->path = path;
  const GgufFile file = open(path, model->files);
  const std::string_view type = file.string("general.type").value_or("model");
  if (type != "model") {
    throw LoadError(path + ": metadata key \"general.type\" is " + quote(type) +
                    ", expected \"model\"");
  }
  const Arch& arch = find_gguf_arch(file.required_string("general.architecture"), path);

  TensorSet tensors;
  tensors.add(file);
  const int64_t num_splits = file.integer("split.count", {0, kMaxSplits}).value_or(1);
  if (num_splits > 1) add_splits(file, num_splits, model->files, tensors);

  ArchReading reading = arch.from_gguf(file, tensors);
  model->spec = std::move(reading.spec);
  map_weights(tensors, arch.gguf_tensors, reading.attention_bias, *model);

  model->name = file.string("general.name").value_or(std::filesystem::path(path).stem().string());
  model->vocabulary = read_gguf_vocabulary(file);
  if (std::ssize(model->vocabulary.tokens) > model->spec.vocab_size) {
    throw LoadError(path + ": the vocabulary has " +
                    std::to_string(model->vocabulary.tokens.size()) +
                    " tokens, expected at most the " + std::to_string(model->spec.vocab_size) +
                    " rows of the embedding");
  }
  model->chat_template = file.string("tokenizer.chat_template").value_or("");
  model->eos_token_ids = read_gguf_eos(file, model->vocabulary);
  return model;
}

}  // namespace headwater
