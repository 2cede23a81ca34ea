// The parts of a tokenizer.json beside its model: normalizer, pre_tokenizer and decoder, each a
// component or a Sequence of them, as the steps of a Vocabulary. What is not understood is refused
// by name.
#pragma once

#include "engine/io/json_object.h"
#include "engine/text/tokenizer.h"

namespace headwater {

// Adds the component's steps to vocabulary.normalizer. Throws LoadError, as all of these.
void read_normalizer(const JsonObject& normalizer, Vocabulary& vocabulary);
// Adds to vocabulary.pre_steps; true: the last component maps bytes to characters (ByteLevel).
bool read_pre_tokenizer(const JsonObject& pre_tokenizer, Vocabulary& vocabulary);
// Sets space, leading_space and byte_fallback of decoding.
struct JsonDecoder {
  std::string space;
  bool leading_space = false;
  bool bytes = false;  // tokens "<0x0A>" are bytes
};
void read_decoder(const JsonObject& decoder, bool byte_level, JsonDecoder& out);

[[noreturn]] void refuse(const JsonObject& object,
                         std::string_view key,
                         std::string_view expected,
                         std::string_view got);

}  // namespace headwater
