// The methods that differentiate, as rows of calibration_methods(): DuoAttention and MoA.
// Thread: the caller's.
#pragma once

#include "engine/calibrate/methods.h"

namespace headwater {

// Gates over passkey texts, or over questions (options.duo_data). Goes on from the checkpoint step
// by step.
HeadTable calibrate_duo(Calibration& calibration);
// Spans over questions and the model's own answers, which are profiled in three groups by length.
// Goes on from the checkpoint group by group.
HeadTable calibrate_moa(Calibration& calibration);

}  // namespace headwater
