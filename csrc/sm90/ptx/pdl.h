// Programmatic dependent launch: a kernel may start while its predecessor still runs.
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

// Waits until every kernel this one depends on has finished and its writes are visible. Comes
// before any read of a kernel input and before any global write.
FMH_DEVICE void wait_for_predecessors() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel start its prologue. Only after wait_for_predecessors: the other order was
// measured slower.
FMH_DEVICE void release_successors() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace fmh
