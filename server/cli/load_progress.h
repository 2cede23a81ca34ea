// LoadProgressBar: what the user sees while a model loads: a bar on a terminal, plain lines
// otherwise. Called from the loading thread.
#pragma once

#include <string>

#include "engine/engine.h"

namespace headwater::cli {

// Writes to standard error; of stage "weights" also the bytes and their rate.
LoadProgress make_load_progress();

}  // namespace headwater::cli
