// What every producer has in common: the tensor maps and the loads of Q.
#pragma once
#include "sm90/core/layout.h"
#include "sm90/core/tile.h"
#include "sm90/core/walk.h"
#include "sm90/ptx/copy.h"
#include "sm90/ptx/fence.h"
#include "sm90/ptx/mbarrier.h"

namespace fmh {

// Tensor maps of a launch; K's only where Keys reads through them.
struct Maps {
  const TensorMap *q, *k_left, *k_right;
};

// Q of a tile: one box of all column tiles where the box has 64 rows, else one box a column
// tile. Rows past the tensor's edge arrive as zeros; rows past a smaller box keep what was there,
// which only makes those rows of S and O meaningless.
FMH_DEVICE void load_q(const TensorMap* map, const MlaParams& p, const Tile& tile,
                       int request) {
  const int token = small_quotient(tile.first_row, p.q_heads);
  const int head = tile.kv_head * p.group + tile.first_row - token * p.q_heads;
  const QueryToken at(p, request, token);
  barrier_arrive_expect(kQFull, p.q_boxes * p.q_box_bytes);
#pragma unroll 1
  for (int t = 0; t < p.q_boxes; t++) {
    tma_load(kSharedBase + kOffsetQ + t * kTileBytes, map, 0, head, at.token, t, at.row, kQFull);
  }
}

}  // namespace fmh
