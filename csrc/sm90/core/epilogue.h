// From accumulators to global memory, straight from registers: the K ring is not touched, so the
// next request's K streams in meanwhile.
#pragma once
#include "sm90/core/partial.h"
#include "sm90/core/row_result.h"
#include "sm90/core/walk.h"
#include "sm90/ptx/copy.h"
#include "sm90/ptx/matrix.h"

namespace fmh {

// One row of a half of O in the element type. Pairs of lanes exchange to 8 bytes each, so that
// every store fills 32-byte sectors (plain stores took 3x as long); going on to 16 bytes a lane
// costs more selections than it saves stores.
FMH_DEVICE void store_row(u16* out, const float (&o)[128], int h, float factor, int lane,
                          bool live) {
  const bool odd = lane & 1;
  out += (odd ? 8 : 0) + ((lane & 2) ? 4 : 0);
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const float* e = o + 8 * k;
    const u32 a = pack((h ? e[2] : e[0]) * factor, (h ? e[3] : e[1]) * factor);
    const u32 b = pack((h ? e[6] : e[4]) * factor, (h ? e[7] : e[5]) * factor);
    const u32 other = shuffle_xor(odd ? a : b, 1);
    store_8_if(live, out + k * 16, odd ? other : a, odd ? b : other);
  }
}

// Both rows of a thread in the element type, 64 bytes of a row by each quad: a warp's 16 rows go
// through a kilobyte of P1, 32 columns at a time. Half of the requests to L1 that store_row makes,
// which counts where requests are short: lists of 2048, 2.4 % of the whole kernel.
//
// P1 is free: both groups have exchanged their sums, so its last product is done, and group 1 fills
// it only after group 0's next weights.
template <int kGroup>
FMH_DEVICE void store_rows(u16* const (&out)[2], const float (&o)[128],
                           const float (&factor)[2], const bool (&live)[2], int lane) {
  const int warp = (threadIdx.x & (kGroupThreads - 1)) >> 5;
  const u32 stage = kSharedBase + kOffsetP1 + (kGroup * 4 + warp) * 1024;
  const int matrix_row = (lane & 7) + (lane & 8);
  const u32 to = stage + matrix_row * 64, swizzle = (matrix_row >> 1) & 3;
  const int row = lane >> 2;
  const u32 from = stage + row * 64 + (((lane & 3) ^ ((row >> 1) & 3)) << 4);
#pragma unroll
  for (int c = 0; c < 8; c++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float* e = o + (4 * c + 2 * half) * 4;
      const u32 x[4] = {pack(e[0] * factor[0], e[1] * factor[0]),
                        pack(e[2] * factor[1], e[3] * factor[1]),
                        pack(e[4] * factor[0], e[5] * factor[0]),
                        pack(e[6] * factor[1], e[7] * factor[1])};
      store_matrix_x4(to + (((2 * half + (lane >> 4)) ^ swizzle) << 4), x);
    }
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint4 v = load_shared_16(from + h * 512);
      store_16_if(live[h], out[h] + c * 32 + (lane & 3) * 8, v);
    }
    __syncwarp();
  }
}

// Zeros and lse +inf for a request without keys; group kGroup writes its half of the columns.
template <int kGroup>
FMH_DEVICE void store_empty(const MlaParams& p, const Tile& tile, int request, int thread) {
#pragma unroll 1
  for (int i = thread; i < tile.live * 32; i += kGroupThreads) {
    const RowPlace place(p, tile, i >> 5);
    *(uint4*)(place.out(p, request) + kGroup * 256 + (i & 31) * 8) = make_uint4(0, 0, 0, 0);
  }
  if (kGroup == 0 && thread < tile.live) {
    store_row_facts(p, RowPlace(p, tile, thread), request, kNoMax, 0.f);
  }
}

// Stores a finished fragment; `peak` and `sum` are those of a row over both groups and the whole
// quad.
template <int kGroup>
FMH_DEVICE void store_fragment(const MlaParams& p, const Tile& tile,
                               const FragmentWalk<true>& walk, int part, const float (&o)[128],
                               const float (&maximum)[2], const float (&peak)[2],
                               const float (&sum)[2], int row, int lane) {
  if (row - (lane >> 2) >= tile.live) return;  // a warp without a live row
  const bool speaks = (lane & 3) == 0;
  if (walk.is_whole()) {
    if constexpr (kLists) {
      u16* out[2];
      float factor[2];
      bool live[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        live[h] = row + 8 * h < tile.live;
        const RowPlace place(p, tile, row + 8 * h);
        float l = sum[h], m = maximum[h], moved;
        to_peak(peak[h], m, l, moved);
        factor[h] = moved * row_weight(p, place, m, l, live[h]);
        out[h] = place.out(p, walk.request) + kGroup * 256;
        if (kGroup == 0 && live[h] && speaks) store_row_facts(p, place, walk.request, m, l);
      }
      store_rows<kGroup>(out, o, factor, live, lane);
      return;
    }
    // A loop over the two rows, not two copies: half the code to fetch, and fewer values in flight.
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const RowPlace place(p, tile, row + 8 * h);
      const float l = h ? sum[1] : sum[0], m = h ? maximum[1] : maximum[0];
      const float inverse = row_weight(p, place, m, l, live);
      store_row(place.out(p, walk.request) + kGroup * 256, o, h, inverse, lane, live);
      if (kGroup == 0 && live && speaks) store_row_facts(p, place, walk.request, m, l);
    }
  } else {
    const u32 first = (walk.slot(p, part) * p.lanes + tile.lane) * p.tile_rows + row;
    u16* const partial = (u16*)p.partial_out + (first * (u32)kDimV + kGroup * 256);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const PartialScale scale(row_norm(o, h), sum[h]);
      if (live && speaks) {
        float* const stats = p.partial_stats + (first + 8 * h) * 4u;
        float l = sum[h], m = maximum[h], moved = 1.f;
        if constexpr (kLists) to_peak(peak[h], m, l, moved);
        if (kGroup == 0) *(float2*)stats = make_float2(m, l);
        stats[2 + kGroup] = scale.load * moved;
      }
      store_partial_row(partial + 8 * h * kDimV, o, h, scale.store, lane, live);
    }
  }
}

}  // namespace fmh
