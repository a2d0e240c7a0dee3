// The one argument structure of the dense decode kernel and of its combine kernel.
//
// Passed by value. The host fills the same layout (natural alignment, no padding but the last
// 4 bytes); tests/hopper checks the offsets of both sides against each other.
//
// Words: a *row* is one (query token, query head) of one KV head; R = s_q * (h_q / h_kv) rows are
// cut into *tiles* of at most 64; a *lane* is a (KV head, tile) pair; a *part* is one share of the
// batch's KV blocks; a CTA is a (part, lane); a *block* is 64 tokens of a request; a *fragment*
// is the consecutive blocks of one request that one CTA computes.
#pragma once

struct DenseDecodeParams {
  const void* k_cache;       // (num_blocks, page_block_size, h_kv, d_qk); read only if FMH_PAGES 1
  const int* block_table;    // (batch, block_table_stride); entries past a row's length never read
  const int* cache_seqlens;  // (batch,)
  void* out;                 // (batch, s_q, h_q, d_v) through the strides below
  float* lse;                // (batch, h_q, s_q) through the strides below, natural logarithm
  void* partial_out;         // (slots, lanes * tile_rows, d_v): unnormalised O of a fragment, fp16,
                             // each half of a row divided by a scale
  float* partial_stats;      // (slots, lanes * tile_rows, 4): row maximum (log2 units), row sum,
                             // scales of the left and the right half
  int* part_info;            // (parts,): request * 256 + fragments of the request split at the
                             // part's end, 0: none; null where no combine follows

  long long block_table_stride;                                   // elements
  long long k_stride_page, k_stride_token, k_stride_head;         // elements; FMH_PAGES 1 only
  long long out_stride_batch, out_stride_token, out_stride_head;  // elements, multiples of 8
  long long lse_stride_batch, lse_stride_head, lse_stride_token;  // elements

  int batch;            // 1..4096
  int s_q;              // query tokens of a request
  int group;            // query heads per KV head, h_q / h_kv
  int rows;             // R = s_q * group
  int tile_rows;        // rows of a tile, <= 64 (see csrc/README.md)
  int tiles;            // ceil(rows / tile_rows)
  int lanes;            // h_kv * tiles
  int parts;            // max(1, min(144, SMs / lanes)); the grid is parts * lanes CTAs
  int page_block_size;  // tokens of a page
  int capacity;         // tokens a block_table row can hold; longer lengths count as this
  int causal;           // 0 or 1

  int q_heads;        // heads that one step along the map's token dimension spans (README)
  int q_boxes;        // 1: one box holds all column tiles; d_qk / 64: one box for each
  int q_box_bytes;    // bytes of one box
  int kv_head_tiles;  // 64-element columns between two KV heads in a token (FMH_PAGES 0)

  int request_cost;     // cost of one more request in a part, in blocks
  int min_part_blocks;  // a part is given at least this many blocks; a power of two
  int prefetch;         // mean blocks of a part from which on its tiles prefetch the next pair of
                        // blocks into L2 together; 0: never
  int evict_first;      // most blocks of the batch at which L2 is told to evict K first
  int evict_half;       // most blocks at which that is said of every second line only

  int chunk_blocks;  // batch invariant: least blocks of a chunk
  int max_chunks;    // batch invariant: slots per request, min(32, ceil(blocks of capacity /
                     // chunk_blocks))

  float scale_log2;  // softmax_scale * log2(e); > 0
};
