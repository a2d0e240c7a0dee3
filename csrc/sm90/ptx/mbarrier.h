// mbarrier: the full/empty handshakes between the copy engine and the warps of one CTA.
//
// The operations are unqualified on purpose: spelled .release.cluster or .acquire.cluster they
// become GPU-wide fences (measured: the ring ran at less than half speed).
#pragma once
#include "sm90/ptx/delay.h"

namespace fmh {

FMH_DEVICE void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine; a CTA barrier must follow.
FMH_DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

FMH_DEVICE void barrier_arrive(u32 barrier) {
  test_delay();
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and announces `bytes` that bulk copies will deliver in this phase.
FMH_DEVICE void barrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Arrives once all cp.async this thread issued before have landed; counts as one of `arrivals`.
FMH_DEVICE void barrier_arrive_after_copies(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Returns when the phase of `parity` is complete.
FMH_DEVICE void barrier_wait(u32 barrier, u32 parity) {
  test_delay();
  asm volatile(
      "{\n.reg .pred p;\n"
      "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace fmh
