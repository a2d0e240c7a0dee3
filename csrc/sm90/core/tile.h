// The rows of a CTA: which heads and query tokens they are, and where their results go.
#pragma once
#include "sm90/core/entries.h"

namespace fmh {

// The rows a CTA computes.
struct Tile {
  int lane, kv_head;
  int index;      // tile of the KV head
  int first_row;  // row of the KV head that is row 0 of the tile
  int live;       // rows of the tile that exist, 1..64

  FMH_DEVICE Tile(const MlaParams& p, int lane_of_part) : lane(lane_of_part) {
    kv_head = small_quotient(lane, p.tiles);
    index = lane - kv_head * p.tiles;
    first_row = index * p.tile_rows;
    live = min(p.tile_rows, p.rows - first_row);
  }
};

// Token and query head of a row.
struct RowPlace {
  int token, head;
  FMH_DEVICE RowPlace(const MlaParams& p, const Tile& tile, int row) {
    const int r = tile.first_row + row;
    token = small_quotient(r, p.group);
    head = tile.kv_head * p.group + r - token * p.group;
  }
  FMH_DEVICE u16* out(const MlaParams& p, int request) const {
    const QueryToken at(p, request, token);
    return (u16*)p.out + at.row * p.out_stride_batch + at.token * p.out_stride_token +
           head * p.out_stride_head;
  }
  FMH_DEVICE long long row_of_lse(const MlaParams& p, int request) const {
    const QueryToken at(p, request, token);
    return at.row * p.lse_stride_batch + head * p.lse_stride_head + at.token * p.lse_stride_token;
  }
  FMH_DEVICE float* lse(const MlaParams& p, int request) const {
    return p.lse + row_of_lse(p, request);
  }
};

// The first token (of the request) that each of a math thread's two rows may not see.
struct RowLimits {
  int limit[2];
};

}  // namespace fmh
