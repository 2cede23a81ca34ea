// A model's fingerprint: what a file made for one model (a head table) is checked against.
#pragma once

#include <string>

#include "engine/model/loaded_model.h"

namespace headwater {

// 16 hex digits over the metadata: architecture, sizes, rotary numbers, shapes of the weights. It
// leaves out formats and names of tensors, so that a Hugging Face folder and GGUF files of it in
// any quantisation agree; fine-tunes of one model agree too. No protection against forgery.
std::string model_fingerprint(const LoadedModel& model);

}  // namespace headwater
