// LoadProgressBar: what the user sees while a model loads: a bar on a terminal, one plain line per
// stage otherwise. Called from the loading thread.
#pragma once

#include <string>

#include "engine/engine.h"

namespace headwater::cli {

// Writes to standard error.
LoadProgress make_load_progress();

}  // namespace headwater::cli
