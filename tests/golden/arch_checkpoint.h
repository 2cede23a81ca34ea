// A golden case of tests/data/golden/archs.json as the files people have: a Hugging Face folder,
// and the GGUF that llama.cpp's converter would make of it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/temp_file.h"

namespace headwater::testing {

using Json = nlohmann::json;

enum class Spelling : uint8_t { kPublished, kResaved };  // of a multimodal model's tensor names

// config.json, tokenizer.json and model.safetensors, in two shards if asked for. A tied model in
// shards brings an output too, as some do; a multimodal one some of its vision.
void write_hf_folder(const Json& golden,
                     const TempFolder& folder,
                     bool sharded,
                     Spelling spelling = Spelling::kPublished);

// "": there is no such file: nothing in GGUF says what the config does.
std::string gguf_of(const Json& golden);

}  // namespace headwater::testing
