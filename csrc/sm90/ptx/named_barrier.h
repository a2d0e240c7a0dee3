// Named CTA barriers: hand-offs between the two math warpgroups and inside one.
#pragma once
#include "sm90/ptx/delay.h"

namespace fmh {

template <int kId, int kThreads>
FMH_DEVICE void named_sync() {
  test_delay();
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

template <int kId, int kThreads>
FMH_DEVICE void named_arrive() {
  test_delay();
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

FMH_DEVICE void named_sync(int id, int threads) {
  test_delay();
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace fmh
