// From accumulators to global memory, straight from registers: the K ring is not touched, so the
// next request's K streams in meanwhile.
#pragma once
#include "sm90/decode/dense/softmax.h"
#include "sm90/decode/dense/walk.h"

namespace fmh {

constexpr float kLn2 = 0.6931471805599453f;

// The rows a CTA computes.
struct Tile {
  int lane, kv_head;
  int index;      // tile of the KV head
  int first_row;  // row of the KV head that is row 0 of the tile
  int live;       // rows of the tile that exist, 1..64

  FMH_DEVICE Tile(const DenseDecodeParams& p, int lane_of_part) : lane(lane_of_part) {
    kv_head = small_quotient(lane, p.tiles);
    index = lane - kv_head * p.tiles;
    first_row = index * p.tile_rows;
    live = min(p.tile_rows, p.rows - first_row);
  }
};

// Token and query head of a row.
struct RowPlace {
  int token, head;
  FMH_DEVICE RowPlace(const DenseDecodeParams& p, const Tile& tile, int row) {
    const int r = tile.first_row + row;
    token = small_quotient(r, p.group);
    head = tile.kv_head * p.group + r - token * p.group;
  }
  FMH_DEVICE u16* out(const DenseDecodeParams& p, int request) const {
    return (u16*)p.out + request * p.out_stride_batch + token * p.out_stride_token +
           head * p.out_stride_head;
  }
  FMH_DEVICE float* lse(const DenseDecodeParams& p, int request) const {
    return p.lse + request * p.lse_stride_batch + head * p.lse_stride_head +
           token * p.lse_stride_token;
  }
};

// One row of a half of O in the element type. A 4x4 transpose inside each quad turns 4-byte
// pieces into 16 bytes a lane, 64 bytes a row and instruction (plain stores took 3x as long).
FMH_DEVICE void store_row(u16* out, const float (&o)[128], int h, float factor, int lane,
                          bool live) {
  const bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    u32 x[4];
#pragma unroll
    for (int g = 0; g < 4; g++) {
      const float* e = o + (4 * k + g) * 4;
      x[g] = pack((h ? e[2] : e[0]) * factor, (h ? e[3] : e[1]) * factor);
    }
    u32 a = shuffle_xor(odd ? x[0] : x[1], 1), b = shuffle_xor(odd ? x[2] : x[3], 1);
    if (odd) {
      x[0] = a, x[2] = b;
    } else {
      x[1] = a, x[3] = b;
    }
    a = shuffle_xor(high ? x[0] : x[2], 2), b = shuffle_xor(high ? x[1] : x[3], 2);
    if (high) {
      x[0] = a, x[1] = b;
    } else {
      x[2] = a, x[3] = b;
    }
    if (live) *(uint4*)(out + k * 32 + (lane & 3) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
  }
}

// The same in float32, unnormalised: pairs of lanes exchange to 16 bytes each.
FMH_DEVICE void store_partial_row(float* out, const float (&o)[128], int h, int lane, bool live) {
  const bool odd = lane & 1;
#pragma unroll
  for (int k = 0; k < 16; k++) {
    const float* e = o + 8 * k;
    const float a0 = h ? e[2] : e[0], a1 = h ? e[3] : e[1];
    const float b0 = h ? e[6] : e[4], b1 = h ? e[7] : e[5];
    const float u = shuffle_xor(odd ? a0 : b0, 1), v = shuffle_xor(odd ? a1 : b1, 1);
    const float4 f = odd ? make_float4(u, v, b0, b1) : make_float4(a0, a1, u, v);
    if (live) *(float4*)(out + k * 16 + (odd ? 8 : 0) + ((lane & 2) ? 4 : 0)) = f;
  }
}

// Zeros and lse +inf for a request without keys; group kGroup writes its half of the columns.
template <int kGroup>
FMH_DEVICE void store_empty(const DenseDecodeParams& p, const Tile& tile, int request, int thread) {
#pragma unroll 1
  for (int i = thread; i < tile.live * 32; i += kGroupThreads) {
    const RowPlace place(p, tile, i >> 5);
    *(uint4*)(place.out(p, request) + kGroup * 256 + (i & 31) * 8) = make_uint4(0, 0, 0, 0);
  }
  if (kGroup == 0 && thread < tile.live) *RowPlace(p, tile, thread).lse(p, request) = infinity();
}

// Stores a finished fragment; `sum` are the row sums over both groups and the whole quad.
template <int kGroup>
FMH_DEVICE void store_fragment(const DenseDecodeParams& p, const Tile& tile,
                               const FragmentWalk<true>& walk, int part, const float (&o)[128],
                               const float (&maximum)[2], const float (&sum)[2], int row,
                               int lane) {
  // A loop over the two rows, not two copies: half the code to fetch, and fewer values in flight.
  if (walk.is_whole()) {
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const RowPlace place(p, tile, row + 8 * h);
      const float l = h ? sum[1] : sum[0], m = h ? maximum[1] : maximum[0];
      const float inverse = l > 0 ? 1.f / l : 0.f;
      store_row(place.out(p, walk.request) + kGroup * 256, o, h, inverse, lane, live);
      if (kGroup == 0 && live && (lane & 3) == 0) {
        *place.lse(p, walk.request) = l > 0 ? kLn2 * (m + log2_approx(l)) : infinity();
      }
    }
  } else {
    const long long first =
        (long long)walk.slot(p, part) * (p.lanes * p.tile_rows) + tile.lane * p.tile_rows + row;
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
      const bool live = row + 8 * h < tile.live;
      const long long r = first + 8 * h;
      if (kGroup == 0 && live && (lane & 3) == 0) {
        ((float2*)p.partial_ml)[r] =
            h ? make_float2(maximum[1], sum[1]) : make_float2(maximum[0], sum[0]);
      }
      store_partial_row(p.partial_out + r * kDimV + kGroup * 256, o, h, lane, live);
    }
  }
}

}  // namespace fmh
