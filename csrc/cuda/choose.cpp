#include "choose.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "adaptive/lane.h"
#include "layout.h"

namespace jkoflow::cuda {
namespace {

bool with_tangents(const Problem& p) { return p.hidden_layers > 2 || p.divergence == Divergence::kHutchinson; }

// Places a thread block's buffers one behind the other: those that must lie in shared memory, and those that lie there
// if there is room.
class Placing {
 public:
  explicit Placing(Choice& choice) : choice_(choice) {}

  int fixed(const char* name, int floats) {
    const int offset = choice_.shared_floats;
    choice_.shared_floats += round_up(floats, 32);
    note(name, floats, Where::kShared);
    return offset;
  }
  Place flexible(const char* name, int floats, size_t limit, Where otherwise = Where::kScratch) {
    const int rounded = round_up(floats, 32);
    if ((static_cast<size_t>(choice_.shared_floats) + rounded) * sizeof(float) <= limit) {
      return {fixed(name, floats), 1};
    }
    note(name, floats, otherwise);
    if (otherwise == Where::kGradient) return {0, 0};
    choice_.scratch_floats += rounded;
    return {choice_.scratch_floats - rounded, 0};
  }

 private:
  void note(const char* name, int floats, Where where) {
    if (choice_.buffer_count == kMaxBuffers) throw std::logic_error("kMaxBuffers is too small");
    choice_.buffers[choice_.buffer_count++] = {name, floats, where};
  }

  Choice& choice_;
};

void place_fixed(const Problem& p, Choice& choice) {
  Placing place(choice);
  Layout& layout = choice.layout;
  const int tile = choice.tile();
  place.fixed("panels", planes_of(choice.kind.task, choice.kind.tangents, choice.warp_groups) * tile * choice.kind.H);
  layout.input_stride = round_up(p.input_columns() + 1, 32);
  layout.input = place.fixed("input", tile * layout.input_stride);
  layout.divergence = place.fixed("divergence", choice.threads() / 32 * tile);
  layout.logdet = place.fixed("logdet", 2 * tile);
  if (p.divergence == Divergence::kHutchinson) layout.noise = place.fixed("noise", tile * layout.input_stride);
  if (!is_adjoint(choice.kind.task)) return;
  layout.cotangent_stride = round_up(p.dim, 32);
  layout.cotangent = place.fixed("cotangent", tile * layout.cotangent_stride);
  layout.logdet_bar = place.fixed("logdet_bar", tile);
}

void place_flexible(const Problem& p, size_t limit, Choice& choice) {
  Placing place(choice);
  Layout& layout = choice.layout;
  const bool adjoint = is_adjoint(choice.kind.task), adaptive = is_adaptive(choice.kind.task);
  const int H = choice.kind.H, rows = choice.tile() * p.dim;
  layout.x = place.flexible("x", rows, limit);
  // Of adaptive steps the linear term's velocity lies behind those of the stages.
  layout.stages = place.flexible("stages", (p.tableau.stages + (adaptive && !adjoint)) * rows, limit);
  if (adaptive) layout.lanes = place.flexible("lanes", lane_floats(choice.tile(), adjoint), limit);
  int slots = adjoint ? 1 : 0;
  if (choice.kind.tangents) {
    const int hutchinson = p.divergence == Divergence::kHutchinson;
    slots = adjoint ? AdjointSlots(p.hidden_layers, hutchinson).count() : p.hidden_layers + 2 * hutchinson;
  }
  if (slots > kMaxSlots) throw std::logic_error("kMaxSlots is too small");
  for (int i = 0; i < slots; ++i) layout.slots[i] = place.flexible("slot", choice.tile() * H, limit);
  if (!adjoint) {
    layout.x_rest = place.flexible("x_rest", rows, limit);  // last: once a step is not often
    if (adaptive) layout.next_rest = place.flexible("next_rest", rows, limit);
    return;
  }
  layout.x_bar = layout.x_rest = place.flexible("x_bar", rows, limit);
  layout.context_bar = place.flexible("context_bar", choice.tile() * p.context_dim, limit);
  if (p.has_time_column() && !adaptive) layout.time_bar = place.flexible("time_bar", choice.tile(), limit);
  const int first_stride = sum_stride(p.input_columns() + 1), narrow_stride = sum_stride(p.dim);
  layout.bias_last_sum = place.flexible("bias_last_sum", round_up(p.dim, 8), limit, Where::kGradient);
  layout.last_sum = place.flexible("last_sum", H * narrow_stride, limit, Where::kGradient);
  layout.first_sum = place.flexible("first_sum", H * first_stride, limit, Where::kGradient);
  if (adaptive) {
    layout.x_extra = place.flexible("x_extra", rows, limit);
    layout.velocity_extra = place.flexible("velocity_extra", p.tableau.stages * rows, limit);
  }
  if (p.linear == nullptr) return;
  layout.linear_sum = place.flexible("linear_sum", round_up(p.dim, 16) * narrow_stride, limit, Where::kGradient);
}

// The kernel whose fixed buffers, which it places, fit into `limit` bytes of shared memory, or come closest to it. The
// narrowest one if it can be; but wider ones carry fewer samples at a time, so that long inputs take less room.
Choice narrowest(const Problem& p, Precision precision, Task task, int architecture, size_t limit) {
  const int width = *std::max_element(p.width, p.width + p.hidden_layers);
  const bool tangents = with_tangents(p);
  Choice best;
  for (const int H : kWidths) {
    if (H < width) continue;
    Choice choice;
    choice.kind = {task, H, precision, tangents};
    choice.shape = shape_of(architecture, task, H, precision, tangents);
    choice.warp_groups = with_warp_groups(architecture, precision, tangents);
    place_fixed(p, choice);
    if (best.kind.H == 0 || choice.shared_bytes() < best.shared_bytes()) best = choice;
    if (best.shared_bytes() <= limit) break;
  }
  return best;
}

}  // namespace

Choice choose(const Problem& p, Precision precision, Task task, const Gpu& gpu) {
  const std::string reason = unsupported(p, precision);
  if (!reason.empty()) throw std::runtime_error("the CUDA kernels " + reason);
  Choice choice = narrowest(p, precision, task, gpu.architecture, gpu.shared_per_block);
  size_t limit = std::min(gpu.shared_per_block, gpu.shared_per_multiprocessor / choice.shape.blocks - kReservedShared);
  if (choice.shared_bytes() > limit) limit = gpu.shared_per_block;
  place_flexible(p, limit, choice);
  return choice;
}

int estimated_blocks(const Choice& choice, const Gpu& gpu) {
  const size_t fit = gpu.shared_per_multiprocessor / (choice.shared_bytes() + kReservedShared);
  return static_cast<int>(std::clamp<size_t>(fit, 1, choice.shape.blocks));
}

std::string unsupported(const Problem& p, Precision precision) {
  const auto text = [](long long n) { return std::to_string(n); };
  if (p.float64) return "compute in float32, x is float64";
  if (p.hidden_layers < 1 || p.hidden_layers > kMaxLayers) {
    return "have 1 to " + text(kMaxLayers) + " hidden layers, the velocity has " + text(p.hidden_layers);
  }
  for (int l = 0; l < p.hidden_layers; ++l) {
    if (p.width[l] > 256) return "have hidden layers of up to 256 units, the velocity has one of " + text(p.width[l]);
  }
  if (p.dim > 128) return "take up to 128 features, x has " + text(p.dim);
  for (const auto& [architecture, limit] :
       {std::pair{0, kLeastShared}, std::pair{kWarpGroupArchitecture, kGroupShared}}) {
    size_t most = 0;
    for (const Task task : {Task::kForward, Task::kBackward}) {
      most = std::max(most, narrowest(p, precision, task, architecture, limit).shared_bytes());
    }
    if (most > limit) {
      return "have " + text(limit) + " bytes of shared memory, " + text(p.context_dim) +
             " context variables would take it to " + text(static_cast<long long>(most));
    }
  }
  return "";
}

}  // namespace jkoflow::cuda
