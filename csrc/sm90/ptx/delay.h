// Delays at barriers, for tests only: with FMH_TEST_DELAYS 1 every warp sleeps for a random time
// at one hand-off in eight. What held only by luck of timing then fails.
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

FMH_DEVICE void test_delay() {
#if FMH_TEST_DELAYS
  u32 clock;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(clock));
  const u32 x = (clock ^ (threadIdx.x >> 5) * 0x9E3779B9u ^ blockIdx.x * 0x85EBCA6Bu) * 0xC2B2AE35u;
  if ((x >> 29) == 0) __nanosleep((x >> 16) & 0x7ff);
#endif
}

}  // namespace fmh
