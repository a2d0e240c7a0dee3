// What the kernels over quantised caches take besides MlaParams. Passed by value; the host fills
// the same layout. Strides of caches in MlaParams count bytes here.
#pragma once

struct QuantisedParams {
  const void* q;           // (batch, s_q, h_q, d_qk) through the strides below
  const float* descale_q;  // (1,), null: 1
  const float* descale_k;  // (1,), null: 1; per tensor only
  long long q_stride_batch, q_stride_token, q_stride_head;  // elements, multiples of 8
};
