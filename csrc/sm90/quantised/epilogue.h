// From accumulators to global memory. A thread holds eight neighbouring columns of each of its
// query rows: 256 group + 64 warp + 8 (lane / 4).
#pragma once
#include "sm90/core/partial.h"
#include "sm90/core/row_result.h"
#include "sm90/core/tile.h"
#include "sm90/core/walk.h"
#include "sm90/quantised/convert.h"
#include "sm90/quantised/softmax.h"

namespace fmh {

// Zeros and lse +inf for a request without keys.
FMH_DEVICE void store_empty(const MlaParams& p, const Tile& tile, int request, int thread) {
#pragma unroll 1
  for (int i = thread; i < tile.live * 64; i += kMathThreads) {
    const RowPlace place(p, tile, i >> 6);
    *(uint4*)(place.out(p, request) + (i & 63) * 8) = make_uint4(0, 0, 0, 0);
  }
  if (thread < tile.live) store_row_facts(p, RowPlace(p, tile, thread), request, kNoMax, 0.f);
}

// What becomes of the query rows of a finished fragment, whose sums have been gathered: a thread a
// row, for all. V is to be scaled by `factor`.
FMH_DEVICE void settle_rows(char* smem, const MlaParams& p, const Tile& tile,
                            const FragmentWalk<true>& walk, int part, float factor) {
  const int row = threadIdx.x;
  if (row >= kRows) return;
  RowResult result{nullptr, 0, 0};
  if (row < tile.live) {
    const float sum = row_sum(smem, row);
    const float maximum = shared_at<const RowState>(smem, kOffsetStates)[row].maximum;
    if (walk.is_whole()) {
      const RowPlace place(p, tile, row);
      result.to = (char*)place.out(p, walk.request);
      result.factor = row_weight(p, place, maximum, sum, true) * factor;
      store_row_facts(p, place, walk.request, maximum, sum);
    } else {  // means of V, which fp16 holds as it holds V
      const u32 at = (walk.slot(p, part) * p.lanes + tile.lane) * p.tile_rows + row;
      const float load = sum * factor;
      result.to = (char*)((u16*)p.partial_out + at * (u32)kDimV);
      result.factor = sum > 0 ? 1.f / sum : 0.f;
      *(float4*)(p.partial_stats + at * 4u) = make_float4(maximum, sum, load, load);
    }
  }
  result.live = row < tile.live;
  shared_at<RowResult>(smem, kOffsetResults)[row] = result;
}

FMH_DEVICE void store_rows(const float (&o)[4][kAccumulators], bool whole, int column,
                           int lane) {
  const u32 results = kSharedBase + kOffsetResults + (lane & 3) * 2 * sizeof(RowResult);
  // Partial rows: within 32 columns, place 8 q + 2 i + b holds column 8 i + 2 q + b (partial.h).
  const int offset = 2 * (whole ? column : (column & ~31) + (column >> 3 & 3) * 2);
#pragma unroll
  for (int i = 0; i < kOwnRows; i++) {
    const int e = (i >> 1) * 4 + (i & 1);
    const uint4 r = load_shared_16(results + ((i >> 1) * 8 + (i & 1)) * sizeof(RowResult));
    char* const to = (char*)((u64)r.y << 32 | r.x) + offset;
    const float factor = __uint_as_float(r.z);
    if (r.w == 0) continue;
    float x[8];
#pragma unroll
    for (int m = 0; m < 4; m++) {
      x[2 * m] = o[m][e] * factor;
      x[2 * m + 1] = o[m][e + 2] * factor;
    }
    if (whole) {
      *(uint4*)to =
          make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
    } else {
#pragma unroll
      for (int m = 0; m < 4; m++) *(u32*)(to + 16 * m) = pack_half(x[2 * m], x[2 * m + 1]);
    }
  }
}

}  // namespace fmh
