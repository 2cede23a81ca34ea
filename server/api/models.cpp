#include "server/api/models.h"

#include <utility>

namespace headwater::api {
namespace {

// root and max_model_len are vLLM's; its bench client reads both id and root.
Json model_card(const ModelInfo& info) {
  return {{"id", info.id},
          {"object", "model"},
          {"created", info.created},
          {"owned_by", "headwater"},
          {"root", info.path},
          {"parent", nullptr},
          {"max_model_len", info.max_model_len},
          {"permission", Json::array()}};
}

}  // namespace

Result<Json> list_models(const Service& service) {
  if (service.engine() == nullptr) return service.lifecycle().accepting();
  return Json{{"object", "list"},
              {"data", Json::array({model_card(service.engine()->model_info())})}};
}

Result<Json> get_model(const Service& service, const std::string& id) {
  if (service.engine() == nullptr) return service.lifecycle().accepting();
  if (Status status = service.check_model(id); !status.ok()) return status;
  return model_card(service.engine()->model_info());
}

}  // namespace headwater::api
