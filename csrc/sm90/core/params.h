// The one argument structure of the attention kernels and of the combine kernel.
//
// Passed by value. The host fills the same layout (natural alignment, no padding but the last
// 4 bytes); tests/hopper checks the offsets of both sides against each other.
//
// A *request* is what has its own keys. Dense decode: a row of the batch. Lists: one query token of
// a row of the batch; request r is token r % s_q of row r / s_q (prefill: s_q 1, a query a row).
//
// Words: a *row* is one (query token, query head) of a request and one KV head; R = s_q * (h_q /
// h_kv) rows (lists: h_q / h_kv) are cut into *tiles* of at most 64; a *lane* is a (KV head, tile)
// pair; a *part* is one share of the requests' KV blocks; a CTA is a (part, lane); a *block* is 64
// tokens of a request (lists: 64 entries of one of its lists); a *fragment* is the consecutive
// blocks of one request that one CTA computes.
#pragma once

// Lists only. [0] is the first cache and its list, [1] the second (width 0 where there is none).
struct ListParams {
  const int* slots[2];      // (rows, s_q, h_kv, width): page * page_block_size + token, or invalid
  const int* counts[2];     // (rows,): entries that count; null: all
  const void* cache[2];     // as k_cache of MlaParams
  const float* attn_sink;   // (h_q,), null: none
  float* max_logits;        // through the strides of lse, null: not wanted

  long long slots_stride_row[2], slots_stride_token[2], slots_stride_head[2];  // elements
  long long stride_page[2], stride_token[2], stride_head[2];  // of the caches, as in MlaParams

  int width[2];            // entries of a list
  int limit[2];            // slots of the cache: an entry outside [0, limit) is invalid
  int page_block_size[2];  // 1 where slots are equally spaced (stride_page is their distance)
  int page_multiplier[2];  // 0 for a power of two, else ceil(2^(31 + page_bits) / page_block_size)
  int page_bits[2];        // ceil(log2(page_block_size))
  int dealt;               // 1: whole requests, part p takes p, p + parts, ...; no combine follows
  int reserved;
};

struct MlaParams {
  const void* k_cache;       // (num_blocks, page_block_size, h_kv, d_qk); not read where K comes through tensor maps
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
  long long k_stride_page, k_stride_token, k_stride_head;         // elements; rows only
  long long out_stride_batch, out_stride_token, out_stride_head;  // elements, multiples of 8
  long long lse_stride_batch, lse_stride_head, lse_stride_token;  // elements

  int batch;            // requests of this launch, 1..4096; dealt: 1..2^20
  int s_q;              // query tokens of a row of the batch
  int group;            // query heads per KV head, h_q / h_kv
  int rows;             // R = s_q * group; lists: group
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
  int kv_head_tiles;  // 64-element columns between two KV heads in a token (tensor maps)

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

  ListParams lists;
};
