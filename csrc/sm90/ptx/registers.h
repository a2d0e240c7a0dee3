// setmaxnreg: moves registers from the producer warpgroup to the two math warpgroups.
#pragma once
#include "sm90/ptx/common.h"

namespace fmh {

template <int kRegisters>
FMH_DEVICE void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
FMH_DEVICE void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fmh
