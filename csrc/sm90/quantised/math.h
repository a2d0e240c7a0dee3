// The two math warpgroups. Tokens are taken in pairs of blocks: each group computes the scores and
// weights of one block, then both add the pair's weighted V to their half of O's columns.
//
//   group 0: K0 Q^T | softmax | P0 -> . | O_L^T += V0L^T P0^T + V1L^T P1^T | next K0 Q^T ...
//   group 1: K1 Q^T | softmax | P1 -> . | O_R^T += V0R^T P0^T + V1R^T P1^T | next K1 Q^T ...
//
// Both run the same code: what a group is only shows in addresses, and two copies of it do not fit
// the instruction cache.
#pragma once
#include "sm90/quantised/epilogue.h"
#include "sm90/quantised/products.h"
#include "sm90/quantised/query.h"

namespace fmh {

// This thread's lane, unknown to the compiler: what follows from it is worked out where it is used.
// Kept from one pair to the next it would not fit beside the accumulators.
FMH_DEVICE int fresh_lane() {
  int lane = threadIdx.x & 31;
  asm volatile("" : "+r"(lane));
  return lane;
}

// What all lanes hold, in a uniform register; model1 has none to spare.
FMH_DEVICE int same(int x) { return kFormat == kModel1 ? x : uniform(x); }

FMH_DEVICE void consume(char* smem, const MlaParams& p, const QuantisedParams& x, const Tile& tile,
                        int part) {
  const int group = same(threadIdx.x / kGroupThreads);
  const int warp = same((threadIdx.x & (kGroupThreads - 1)) >> 5);
  const u32* valid = shared_at<const u32>(smem, kOffsetValid);
  const float scale_k = kPerTensor && x.descale_k != nullptr ? *x.descale_k : 1.f;
  const float scale_q = x.descale_q != nullptr ? *x.descale_q : 1.f;
  float s[kAccumulators], w[kAccumulators], both[kOwnRows], o[4][kAccumulators];
  RingPlace pair{0, 0};

  FragmentWalk<true> walk(smem, p);
#pragma unroll 1
  while (walk.next(p, [&](int request) { store_empty(p, tile, request, threadIdx.x); })) {
    load_query(smem, p, x, tile, walk.request, p.scale_log2 * scale_k * scale_q);
#pragma unroll
    for (int m = 0; m < 4; m++) {
#pragma unroll
      for (int i = 0; i < kAccumulators; i++) o[m][i] = 0;
    }
    RowSums sums{{0, 0}};

#pragma unroll 1
    for (int j = walk.begin; j < walk.end; j += 2) {
      const int lane = fresh_lane();
      const RingPlace mine = pair.after(group * 4 + warp);
      barrier_wait(full_barrier(mine.slot), mine.parity);
      multiply_keys(s, slot_address(mine.slot), lane);
      const u32 counts = valid[mine.slot];
      if (counts != 0xffff) mask_tokens(s, counts, lane);
      if (p.causal && (j + 2) * kBlockTokens > walk.length - p.s_q + 1) {
        mask_causal(smem, s, (j + group) * kBlockTokens + warp * kSlotTokens + (lane >> 2),
                    walk.length - p.s_q + 1, lane);
      }
      // Past this barrier all products of the pair before have read their weights.
#pragma unroll 1
      for (bool settled = false;; settled = true) {
        const bool high = exponentials(smem, s, w, both, lane);
        if (settled || !math_barrier_or(high)) break;
        move_maxima(smem, s, sums, o, group * 4 + warp, lane);
      }
      store_weights(w, weight_tile(group), warp, lane);
      sums.add(both, lane);
      proxy_fence();
      math_barrier();
      multiply_values(o, ValueColumns(group, warp, lane), pair, lane);
      pair.advance(kPairSlots);
    }
    const int lane = fresh_lane();
    gather_sums(smem, sums, group * 4 + warp, lane);
    settle_rows(smem, p, tile, walk, part, scale_k);
    math_barrier();
    store_rows(o, walk.is_whole(), group * 256 + warp * 64 + (lane >> 2) * 8, lane);
  }
}

}  // namespace fmh
