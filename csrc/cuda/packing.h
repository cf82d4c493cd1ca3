// The packed weights of a call, and the jobs that fill them.
#pragma once

#include "../problem.h"
#include "arena.h"
#include "choose.h"

namespace jkoflow::cuda {

// Takes their memory from the arena. Returns the number of thread blocks that fill it.
int pack_weights(const Problem& problem, const KernelKind& kind, Arena& arena, Packed& packed, PrepareParams& prepare);

}  // namespace jkoflow::cuda
