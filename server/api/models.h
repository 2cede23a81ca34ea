// /v1/models and /v1/models/{id}. Thread-safe.
#pragma once

#include <string>

#include "server/api/json_body.h"
#include "server/api/service.h"

namespace headwater::api {

// kUnavailable while the model loads.
Result<Json> list_models(const Service& service);
Result<Json> get_model(const Service& service, const std::string& id);

}  // namespace headwater::api
