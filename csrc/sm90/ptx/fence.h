// Ordering between ordinary shared-memory accesses and the asynchronous units (wgmma, TMA).
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

// Ordinary writes of this thread before it are seen by wgmma and TMA operations ordered after it.
FMH_DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace fmh
