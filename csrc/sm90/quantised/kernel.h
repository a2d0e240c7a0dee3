// MLA attention over a quantised cache: one persistent CTA an SM, four producer warps and two math
// warpgroups, tokens as the rows of the products.
#include "sm90/quantised/layout.h"  // before core/schedule.h
#include "sm90/quantised/math.h"
#include "sm90/quantised/producer.h"
#include "sm90/ptx/pdl.h"
#include "sm90/ptx/registers.h"

namespace fmh {

constexpr int kProducerRegisters = 24;
constexpr int kMathRegisters = (3 * 168 - kProducerRegisters) / 2;
static_assert(kMathRegisters % 8 == 0, "setmaxnreg");

FMH_DEVICE void init_barriers() {
#pragma unroll 1
  for (int slot = 0; slot < kSlots; slot++) {
    barrier_init(full_barrier(slot), kFormat == kModel1 ? 33 : 1);
    barrier_init(empty_barrier(slot), kMathWarps);
  }
  barrier_init_fence();
}

}  // namespace fmh

extern "C" __global__ void __launch_bounds__(fmh::kThreads, 1)
    fmh_quantised(const __grid_constant__ MlaParams p, const __grid_constant__ QuantisedParams x) {
  extern __shared__ __align__(1024) char smem[];
  const int position = fmh::uniform(fmh::small_quotient(blockIdx.x, p.lanes));
  const fmh::Tile tile(p, blockIdx.x - position * p.lanes);
  if (threadIdx.x == 0) {
    if (fmh::shared_address(smem) != fmh::kSharedBase) asm volatile("trap;");
    fmh::init_barriers();
  }
  fmh::wait_for_predecessors();
  const int part = fmh::schedule(smem, p, position, tile.lane);  // ends with a CTA barrier

  const int group = fmh::uniform(threadIdx.x / fmh::kGroupThreads);
  if (group < 2) {
    fmh::registers_grow<fmh::kMathRegisters>();
    fmh::consume(smem, p, x, tile, part);
  } else {
    fmh::registers_shrink<fmh::kProducerRegisters>();
    fmh::produce(smem, p, x, tile);
  }
}
