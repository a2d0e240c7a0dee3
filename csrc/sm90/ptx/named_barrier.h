// Named CTA barriers: hand-offs between the two math warpgroups and inside one.
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

template <int kId, int kThreads>
FMH_DEVICE void named_sync() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

template <int kId, int kThreads>
FMH_DEVICE void named_arrive() {
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

}  // namespace fmh
